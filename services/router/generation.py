"""Choose adapters, have a worker answer, pass its words on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from hilora.errors import StaleCatalogGeneration, Unavailable
from services.router.answer import (
    CompletedChoice,
    CompletedGeneration,
    GenerationEvent,
    GenerationFinished,
    PositionLogprobs,
    RouteResult,
    TextDelta,
)
from services.router.ports import Catalog, Workers
from services.router.request import GenerationRequest, WorkOrder
from services.router.routing import RouteText
from services.router.sessions import Sessions
from services.router.traffic import TrafficWatch

_CATCH_UP_SECONDS = 3.0


class GenerateText:
    """The use case behind completions, streaming and not.

    Args:
        route_text: who decides.
        workers: who runs the decision.
        catalog: whose progress is waited for when a worker is ahead of a decision.
        traffic: counts the decisions that requests are served by.
        sessions: hears which plans were used, and what was answered.
    """

    def __init__(
        self,
        *,
        route_text: RouteText,
        workers: Workers,
        catalog: Catalog,
        traffic: TrafficWatch,
        sessions: Sessions,
    ) -> None:
        self._route_text = route_text
        self._workers = workers
        self._catalog = catalog
        self._traffic = traffic
        self._sessions = sessions

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent]:
        """The decision, as soon as a worker admitted the request, then the worker's events.

        A worker that is ahead of this router's catalogue may have dropped an adapter version of the plan; then the
        catalogue is awaited and the request planned again, once.

        The request's time-out holds for all of it: choosing, waiting and generating.

        Raises:
            UnknownAdapter: `model_not_found`.
            Unavailable: also `request_timeout`.
            HiloraError: whatever routing or the worker raised.
        """
        may_plan_again = True
        limit = request.timeout_seconds
        ends_at = None if limit is None else asyncio.get_running_loop().time() + limit
        while True:
            route = await self._route(request, ends_at=ends_at)
            texts = self._followed_texts(request, route)
            order = WorkOrder(request=_with_what_is_left(request, ends_at=ends_at), plan=route.decision.plan)
            is_admitted = False
            try:
                async with aclosing(self._workers.generate(order)) as events:
                    async for event in events:
                        if not is_admitted:
                            is_admitted = True
                            self._traffic.record(route.decision)
                            await self._sessions.served(route.session)
                            yield route
                        if isinstance(event, TextDelta):
                            if texts is not None:
                                texts[event.choice_idx].append(event.text)
                        elif texts is not None and isinstance(event, GenerationFinished):
                            # Before the client hears of the end: its next turn may come at once.
                            await self._sessions.answered(
                                route.session,
                                request.prompt,
                                "".join(texts[event.choice_idx]),
                                tenant=request.options.tenant,
                            )
                        yield event
                return
            except StaleCatalogGeneration:
                if is_admitted or not may_plan_again:
                    raise
                may_plan_again = False
                await self._catalog.wait_beyond(
                    route.decision.plan.catalog_generation, timeout_seconds=_CATCH_UP_SECONDS
                )

    async def _route(self, request: GenerationRequest, *, ends_at: float | None) -> RouteResult:
        limit = asyncio.timeout_at(ends_at)
        try:
            async with limit:
                return await self._route_text.route(request.prompt, request.options)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(
                f"No adapters were chosen within {request.timeout_seconds:g} seconds.",
                code="request_timeout",
                remedy="Wait for longer, or name a model: that needs no encoder.",
            ) from error

    def _followed_texts(self, request: GenerationRequest, route: RouteResult) -> list[list[str]] | None:
        """Room for the pieces of each answer, where the session wants to hear them."""
        if not self._sessions.follows_answers(route.session):
            return None
        return [[] for _ in range(request.sampling.num_choices)]

    async def complete(self, request: GenerationRequest) -> CompletedGeneration:
        """All answers as wholes. Raises as `stream`."""
        route: RouteResult | None = None
        drafts = [_Draft() for _ in range(request.sampling.num_choices)]
        async with aclosing(self.stream(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    drafts[event.choice_idx].add(event)
                elif isinstance(event, RouteResult):
                    route = event
                elif isinstance(event, GenerationFinished):
                    drafts[event.choice_idx].finished = event
        assert route is not None, "a stream that ends without an error began with its decision"
        return CompletedGeneration(route=route, choices=tuple(draft.completed() for draft in drafts))


def _with_what_is_left(request: GenerationRequest, *, ends_at: float | None) -> GenerationRequest:
    """The request with the rest of its time as its time-out."""
    if ends_at is None:
        return request
    return replace(request, timeout_seconds=max(0.001, ends_at - asyncio.get_running_loop().time()))


@dataclass(slots=True)
class _Draft:
    """One answer while its pieces come in."""

    pieces: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[PositionLogprobs] = field(default_factory=list[PositionLogprobs])
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    finished: GenerationFinished | None = None

    def add(self, delta: TextDelta) -> None:
        self.pieces.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs

    def completed(self) -> CompletedChoice:
        assert self.finished is not None, "a stream that ends without an error finished every answer"
        return CompletedChoice(
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            finished=self.finished,
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
        )
