"""Generations that are watched from their beginning to their end; observers get one record of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hilora.errors import Exhausted, HiloraError, InvalidInput, RequestAborted, UnknownAdapter
from services.common.log import get_logger
from services.router.answer import GenerationEvent, GenerationFinished, RouteResult, TextDelta
from services.router.generation import GenerateText
from services.router.observation import GenerationObserver, GenerationRecord
from services.router.ports import Catalog, Workers
from services.router.request import GenerationRequest
from services.router.routing import RouteText
from services.router.sessions import Sessions
from services.router.traffic import TrafficWatch

_log = get_logger(__name__)


class ObservedGenerateText(GenerateText):
    """`GenerateText` under the eyes of observers.

    Args:
        route_text: see `GenerateText`.
        workers: see `GenerateText`.
        catalog: see `GenerateText`.
        traffic: see `GenerateText`.
        sessions: see `GenerateText`.
        observers: get the record of each generation when it ends, and cannot make it fail.
    """

    def __init__(
        self,
        *,
        route_text: RouteText,
        workers: Workers,
        catalog: Catalog,
        traffic: TrafficWatch,
        sessions: Sessions,
        observers: Sequence[GenerationObserver],
    ) -> None:
        super().__init__(route_text=route_text, workers=workers, catalog=catalog, traffic=traffic, sessions=sessions)
        self._observers = tuple(observers)

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent]:
        """See `GenerateText.stream`."""
        sight = _Sight(request)
        error: BaseException | None = None
        try:
            async with aclosing(super().stream(request)) as events:
                async for event in events:
                    sight.see(event)
                    yield event
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._tell(sight.record(error))

    def _tell(self, record: GenerationRecord) -> None:
        for observe in self._observers:
            try:
                observe(record)
            except Exception:  # what only looks must not break what it looks at
                _log.exception("observer_failed")


class _Sight:
    """What was seen of one generation so far."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._started_at = time.time()
        self._started = time.perf_counter()
        self._route: RouteResult | None = None
        self._finished: list[GenerationFinished] = []
        self._first_text: float | None = None
        self._last_text = 0.0
        self._last_text_of: dict[int, float] = {}
        self._gaps: list[float] = []
        self._num_first_tokens = 0
        self._num_tokens = 0

    def see(self, event: GenerationEvent) -> None:
        match event:
            case RouteResult():
                self._route = event
            case TextDelta():
                self._last_text = time.perf_counter()
                if (before := self._last_text_of.get(event.choice_idx)) is not None:
                    self._gaps.append(self._last_text - before)
                self._last_text_of[event.choice_idx] = self._last_text
                self._num_tokens += len(event.token_ids)
                if self._first_text is None:
                    self._first_text = self._last_text
                    self._num_first_tokens = self._num_tokens
            case GenerationFinished():
                self._finished.append(event)
            case _:
                return

    def record(self, error: BaseException | None) -> GenerationRecord:
        num_later = self._num_tokens - self._num_first_tokens
        first = self._first_text
        counted = sum(finished.num_completion_tokens for finished in self._finished)
        outcome, code = _ending(error, is_finished=len(self._finished) == self._request.sampling.num_choices)
        return GenerationRecord(
            request=self._request,
            started_at=self._started_at,
            seconds=time.perf_counter() - self._started,
            outcome=outcome,
            error_code=code,
            route=self._route,
            ttft_seconds=None if first is None else first - self._started,
            # Several answers are written side by side: a token of each comes in the time of one.
            inter_token_seconds=None
            if first is None or num_later <= 0
            else (self._last_text - first) * self._request.sampling.num_choices / num_later,
            text_gaps_seconds=tuple(self._gaps),
            num_prompt_tokens=max((finished.num_prompt_tokens for finished in self._finished), default=0),
            num_cached_tokens=max((finished.num_cached_tokens for finished in self._finished), default=0),
            num_completion_tokens=max(counted, self._num_tokens),
        )


def _ending(error: BaseException | None, *, is_finished: bool) -> tuple[str, str | None]:
    match error:
        case None:
            return "ok", None
        case RequestAborted():
            return "aborted", error.code
        case Exhausted():
            return "exhausted", error.code
        case InvalidInput() | UnknownAdapter():
            return "refused", error.code
        case HiloraError():
            return "failed", error.code
        case Exception():
            return "failed", "internal_error"
        # Whoever reads has all of it when the last answer ended, and may close before the stream says so itself.
        case GeneratorExit() | asyncio.CancelledError() if is_finished:
            return "ok", None
        case _:
            return "aborted", None
