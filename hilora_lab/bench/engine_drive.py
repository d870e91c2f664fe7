"""Driving an engine that was not started, step by step, with a clock around each step.

Only `Engine.run_step` is timed: admission, the forward pass, sampling, text and events, as a worker does them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from hilora.errors import HiloraError
from hilora.routing_plan import RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Failed, Finished
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.models.loader import LoadedModel
from services.worker.ports import ComponentSource

_IDLE_SECONDS = 0.0005
"""Pause while components are on their way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """A prompt and its plan."""

    prompt: tuple[int, ...]
    plan: RoutingPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTimes:
    """Some requests, from the first one's submission to the last one's end."""

    total_seconds: float
    decode_step_seconds: tuple[float, ...]
    """Each step in which every request got one more token and none read its prompt."""
    num_requests: int
    num_tokens: int
    """Generated in all."""

    @property
    def tokens_per_second(self) -> float:
        """Output tokens over the whole time, prompts included."""
        return self.num_tokens / self.total_seconds

    @property
    def decode_tokens_per_second(self) -> float:
        """Output tokens over the time of the decode steps; errors as `decode_seconds`."""
        steps = self._decode_steps()
        return self.num_requests * len(steps) / sum(steps)

    @property
    def decode_seconds(self) -> float:
        """The middle of the decode steps.

        Raises:
            ValueError: the requests never decoded together.
        """
        return median(self._decode_steps())

    def _decode_steps(self) -> tuple[float, ...]:
        if not self.decode_step_seconds:
            raise ValueError("no step in which all requests decoded")
        return self.decode_step_seconds


class EngineDrive:
    """An engine, and requests sent through it.

    Args:
        loaded: the base; the engine takes it over.
        source: of components.
        config: limits.
    """

    def __init__(self, *, loaded: LoadedModel, source: ComponentSource, config: EngineConfig) -> None:
        self.engine = Engine(loaded=loaded, source=source, config=config)
        self._ids = itertools.count()
        self._open_ids: set[str] = set()
        self._error: HiloraError | None = None

    def complete(self, requests: Sequence[BenchRequest], *, new_tokens: int) -> BlockTimes:
        """Send the requests at once and run until all have ended.

        Raises:
            HiloraError: what the first request to fail was told.
        """
        started_at = time.perf_counter()
        before = self.num_generated
        for request in requests:
            self.submit(request, new_tokens=new_tokens)
        decode_steps: list[float] = []
        last_generated = 0
        while self._open_ids:
            seconds, generated = self.step()
            # The step that ends the last prompt gives everybody a token, too, but the one before it did not.
            if generated == last_generated == len(requests):
                decode_steps.append(seconds)
            last_generated = generated
        return BlockTimes(
            total_seconds=time.perf_counter() - started_at,
            decode_step_seconds=tuple(decode_steps),
            num_requests=len(requests),
            num_tokens=self.num_generated - before,
        )

    def start(self, requests: Sequence[BenchRequest], *, new_tokens: int) -> None:
        """Send the requests at once and run until all of them decode; they need more tokens than that takes."""
        for request in requests:
            self.submit(request, new_tokens=new_tokens)
        # The step that ends the last prompt is the first that gives everybody a token.
        while self.step()[1] < len(requests):
            assert len(self._open_ids) >= len(requests), "a request ended before all of them decoded"

    def submit(self, request: BenchRequest, *, new_tokens: int) -> None:
        """Send one request, greedy and without an end of its own."""
        request_id = f"request-{next(self._ids)}"
        self._open_ids.add(request_id)
        self.engine.submit(
            EngineRequest(
                request_id=request_id,
                prompt_token_ids=request.prompt,
                sampling=SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True),
                plan=request.plan,
            ),
            partial(self._hear, request_id),
        )

    def abort_all(self) -> None:
        """End all requests and wait until they have ended."""
        for request_id in tuple(self._open_ids):
            self.engine.abort(request_id)
        while self._open_ids:
            self.step()

    def step(self) -> tuple[float, int]:
        """One turn of the engine's loop: its seconds, and the tokens it generated.

        Raises:
            HiloraError: a request failed; a benchmark of failures measures nothing.
        """
        before = self.num_generated
        started_at = time.perf_counter()
        has_worked = self.engine.run_step()
        seconds = time.perf_counter() - started_at
        if self._error is not None:
            raise self._error
        if not has_worked:
            time.sleep(_IDLE_SECONDS)
        return seconds, self.num_generated - before

    @property
    def num_generated(self) -> int:
        """Tokens since the start."""
        return self.engine.stats().counters.num_generation_tokens

    def close(self) -> None:
        """End the engine and its loader threads."""
        self.engine.stop(drain_seconds=0.0)

    def _hear(self, request_id: str, event: EngineEvent) -> None:
        if isinstance(event, Finished | Failed):
            self._open_ids.discard(request_id)
        if isinstance(event, Failed) and self._error is None:
            self._error = event.error
