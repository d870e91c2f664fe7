"""`/v1/completions`, `/v1/chat/completions`, `/v1/models` and `/v1/route`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from services.router.answer import GenerationEvent, GenerationFinished, RouteResult, TextDelta
from services.router.entrypoints.disconnects import unless_disconnected
from services.router.entrypoints.openai_answers import (
    AnswerKind,
    AnswerShape,
    JsonObject,
    answer_headers,
    describe_model,
    describe_route,
    describe_traffic,
)
from services.router.entrypoints.openai_schemas import ChatBody, CompletionBody, RouteBody, refuse_unsupported
from services.router.entrypoints.router_metrics import RouterMetrics
from services.router.entrypoints.sse import EventStreamResponse
from services.router.entrypoints.tenancy import TENANT_HEADER, tenant_of
from services.router.generation import GenerateText
from services.router.models import ModelDirectory
from services.router.ports import Workers
from services.router.request import GenerationRequest, Prompt, SamplingParams
from services.router.routing import RouteText
from services.router.routing_options import RoutingOptions
from services.router.traffic import TrafficWatch

_ROUTE_RUNNERS_UP = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIRoutes:
    """The routes over their use cases."""

    route_text: RouteText
    generate_text: GenerateText
    models: ModelDirectory
    workers: Workers
    metrics: RouterMetrics
    traffic: TrafficWatch
    trusts_tenants: bool = False
    """Whether clients may say on whose behalf they ask."""

    def api_router(self) -> APIRouter:
        """All of them, for `FastAPI.include_router`."""
        routes = APIRouter()
        routes.add_api_route("/v1/completions", self._complete, methods=["POST"], response_model=None)
        routes.add_api_route("/v1/chat/completions", self._chat, methods=["POST"], response_model=None)
        routes.add_api_route("/v1/models", self._list_models, methods=["GET"])
        # A base's public name may hold a slash ("owner/name").
        routes.add_api_route("/v1/models/{model_id:path}", self._get_model, methods=["GET"])
        routes.add_api_route("/v1/route", self._route, methods=["POST"])
        routes.add_api_route("/v1/route/stats", self._show_traffic, methods=["GET"])
        return routes

    async def _complete(self, body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        refuse_unsupported(body)
        shape = _shape(AnswerKind.COMPLETION, body)
        return await self._generate(request, body, shape, body.text_prompt(), body.sampling())

    async def _chat(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        refuse_unsupported(body)
        shape = _shape(AnswerKind.CHAT, body)
        sampling = body.sampling(max_model_len=self.workers.fleet().max_model_len)
        return await self._generate(request, body, shape, body.chat_prompt(), sampling)

    async def _list_models(self, request: Request) -> JsonObject:
        """Every value of `model`: auto, the base, each adapter, each alias."""
        models = self.models.all_models(self._tenant(request))
        return {"object": "list", "data": [describe_model(model) for model in models]}

    async def _get_model(self, model_id: str, request: Request) -> JsonObject:
        """One model."""
        return describe_model(self.models.model(model_id, self._tenant(request)))

    async def _show_traffic(self, request: Request) -> JsonObject:
        """Which share of the automatic decisions each adapter took lately."""
        options = RoutingOptions(tenant=self._tenant(request))
        return describe_traffic(self.traffic.report(self.models.requester(options)))

    async def _route(self, body: RouteBody, request: Request) -> JsonObject:
        """Choose without generating."""
        options = body.hilora.routing_options(body.model, tenant=self._tenant(request))
        route = await self.route_text.route(body.routing_text(), options, num_runners_up=_ROUTE_RUNNERS_UP)
        self.metrics.observe_route(route)
        return describe_route(route)

    async def _generate(
        self,
        request: Request,
        body: CompletionBody | ChatBody,
        shape: AnswerShape,
        prompt: Prompt,
        sampling: SamplingParams,
    ) -> Response:
        request.state.answer_id = shape.answer_id
        order = GenerationRequest(
            # The worker needs an id that no second request can have; a client may repeat its own.
            request_id=shape.answer_id,
            prompt=prompt,
            sampling=sampling,
            options=body.hilora.routing_options(body.model, tenant=self._tenant(request)),
        )
        if body.stream:
            return await self._stream(request, order, shape, includes_usage=body.includes_usage)
        done = await unless_disconnected(request, self.generate_text.complete(order))
        self.metrics.observe_route(done.route)
        return JSONResponse(shape.whole(done), headers=answer_headers(done.route.decision, done.finished.budgets_used))

    async def _stream(
        self, request: Request, order: GenerationRequest, shape: AnswerShape, *, includes_usage: bool
    ) -> Response:
        events = self.generate_text.stream(order)
        # Until a worker has admitted the request, an error is still an HTTP status.
        try:
            route = await unless_disconnected(request, _first(events))
        except BaseException:
            await events.aclose()
            raise
        assert isinstance(route, RouteResult), "a generation begins with its decision"
        self.metrics.observe_route(route)
        chunks = self._chunks(request, events, route, shape, includes_usage=includes_usage)
        headers = answer_headers(route.decision, route.decision.plan.budgets)
        return EventStreamResponse(chunks, work=events, headers=headers)

    async def _chunks(
        self,
        request: Request,
        events: AsyncGenerator[GenerationEvent],
        route: RouteResult,
        shape: AnswerShape,
        *,
        includes_usage: bool,
    ) -> AsyncGenerator[JsonObject]:
        # With a usage chunk at the end, all the others carry a null (OpenAI's reference, `stream_options`).
        no_usage: JsonObject = {"usage": None} if includes_usage else {}
        is_first_text = True
        yield shape.opening(route) | no_usage
        async for event in events:
            if isinstance(event, TextDelta) and event.text:
                if is_first_text:
                    is_first_text = False
                    self._observe_first_text(request)
                yield shape.piece(event.text) | no_usage
            elif isinstance(event, GenerationFinished):
                yield shape.closing(route, event) | no_usage
                if includes_usage:
                    yield shape.usage_chunk(route, event)

    def _tenant(self, request: Request) -> str | None:
        return tenant_of(request.headers.get(TENANT_HEADER), is_trusted=self.trusts_tenants)

    def _observe_first_text(self, request: Request) -> None:
        started: Any = request.state.started_at
        self.metrics.observe_first_text(request.url.path, seconds=time.perf_counter() - started)


async def _first(events: AsyncGenerator[GenerationEvent]) -> GenerationEvent:
    return await anext(events)


def _shape(kind: AnswerKind, body: CompletionBody | ChatBody) -> AnswerShape:
    prefix = "chatcmpl" if kind is AnswerKind.CHAT else "cmpl"
    return AnswerShape(
        kind=kind, answer_id=f"{prefix}-{uuid.uuid4().hex}", model=body.model, explains=body.hilora.explain
    )
