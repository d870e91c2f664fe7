"""`/v1/completions`, `/v1/chat/completions`, `/v1/models` and `/v1/route`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from hilora.errors import InvalidInput
from services.common.inference_keys import InferenceScope
from services.router.admission import Admission
from services.router.answer import RouteResult
from services.router.entrypoints.access import caller_of, require, tenant_for
from services.router.entrypoints.disconnects import unless_disconnected
from services.router.entrypoints.openai.admitted import complete_admitted, limit_headers, stream_admitted
from services.router.entrypoints.openai.answer_stream import AnswerStream
from services.router.entrypoints.openai.answers import AnswerKind, AnswerShape, Echo
from services.router.entrypoints.openai.chat_request import ChatBody
from services.router.entrypoints.openai.completion_request import CompletionBody
from services.router.entrypoints.openai.deadline import timeout_of
from services.router.entrypoints.openai.descriptions import (
    JsonObject,
    answer_headers,
    describe_model,
    describe_traffic,
)
from services.router.entrypoints.openai.documents import (
    CHAT_RESPONSES,
    COMPLETION_RESPONSES,
    ERROR_RESPONSES,
    ModelDocument,
    ModelListDocument,
)
from services.router.entrypoints.openai.hilora_options import SESSION_HEADER, HiloraOptions, the_one
from services.router.entrypoints.openai.route_answers import describe_route
from services.router.entrypoints.openai.route_request import RouteBody
from services.router.entrypoints.router_metrics import RouterMetrics
from services.router.entrypoints.sse import EventStreamResponse
from services.router.entrypoints.tenancy import TENANT_HEADER
from services.router.generation import GenerateText
from services.router.merging import NumberedEvent
from services.router.models import ModelDirectory
from services.router.ports import Workers
from services.router.request import GenerationRequest, Prompt, SamplingParams, TextPrompt, TokenPrompt
from services.router.routing import RouteText
from services.router.routing_options import RoutingOptions
from services.router.tool_calls import ToolCallFormat
from services.router.traffic import TrafficWatch

_ROUTE_RUNNERS_UP = 10
_MARKED_BY_SPECIAL_TOKENS = frozenset({ToolCallFormat.LLAMA, ToolCallFormat.MISTRAL})
"""Formats whose marks have no text unless special tokens are asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIRoutes:
    """The routes over their use cases."""

    route_text: RouteText
    generate_text: GenerateText
    models: ModelDirectory
    admission: Admission
    workers: Workers
    metrics: RouterMetrics
    traffic: TrafficWatch
    tool_call_format: ToolCallFormat = ToolCallFormat.AUTO
    """How the base writes calls of tools."""
    trusts_tenants: bool = False
    """Whether clients may say on whose behalf they ask."""

    def api_router(self) -> APIRouter:
        """All of them, for `FastAPI.include_router`."""
        routes = APIRouter(responses=ERROR_RESPONSES)
        infer, read = [require(InferenceScope.INFER)], [require(InferenceScope.READ)]
        routes.add_api_route(
            "/v1/completions",
            self._complete,
            methods=["POST"],
            response_model=None,
            responses=COMPLETION_RESPONSES,
            dependencies=infer,
        )
        routes.add_api_route(
            "/v1/chat/completions",
            self._chat,
            methods=["POST"],
            response_model=None,
            responses=CHAT_RESPONSES,
            dependencies=infer,
        )
        routes.add_api_route(
            "/v1/models", self._list_models, methods=["GET"], response_model=ModelListDocument, dependencies=read
        )
        # A base's public name may hold a slash ("owner/name").
        routes.add_api_route(
            "/v1/models/{model_id:path}",
            self._get_model,
            methods=["GET"],
            response_model=ModelDocument,
            dependencies=read,
        )
        routes.add_api_route("/v1/route", self._route, methods=["POST"], dependencies=infer)
        routes.add_api_route("/v1/route/stats", self._show_traffic, methods=["GET"], dependencies=read)
        return routes

    async def _complete(self, body: CompletionBody, request: Request) -> Response:
        """Continue a text, or several."""
        body.check()
        prompts = await asyncio.gather(*map(self._prompt, body.prompts()))
        sampling = body.sampling()
        echoes: tuple[Echo, ...] = ()
        if body.echo:
            sampling, echoes = await self._echoed(body, prompts, sampling)
        shape = AnswerShape(
            kind=AnswerKind.COMPLETION,
            answer_id=f"cmpl-{uuid.uuid4().hex}",
            model=body.model,
            explains=body.hilora.explains_candidates,
            explains_gating=body.hilora.explains_gating,
            num_choices=sampling.num_choices,
            tells_logprobs=body.logprobs is not None,
            echoes=echoes,
            is_echo_alone=body.is_echo_alone,
        )
        return await self._generate(request, body, shape, prompts, sampling)

    async def _chat(self, body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        body.check()
        tools = body.tool_use(self.tool_call_format)
        sampling = body.sampling(tools, max_model_len=self.workers.fleet().max_model_len)
        if tools.is_active and sampling.skip_special_tokens is None and tools.format() in _MARKED_BY_SPECIAL_TOKENS:
            sampling = replace(sampling, skip_special_tokens=False)
        shape = AnswerShape(
            kind=AnswerKind.CHAT,
            answer_id=f"chatcmpl-{uuid.uuid4().hex}",
            model=body.model,
            explains=body.hilora.explains_candidates,
            explains_gating=body.hilora.explains_gating,
            num_choices=sampling.num_choices,
            tells_logprobs=bool(body.logprobs),
            tools=tools,
        )
        return await self._generate(request, body, shape, [body.chat_prompt(tools)], sampling)

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
        options = self._options(request, body.model, body.hilora)
        async with self.admission.admit(caller_of(request), num_tokens=0):
            route = await self.route_text.route(body.routed_prompt(), options, num_runners_up=_ROUTE_RUNNERS_UP)
        self.metrics.observe_route(route)
        return describe_route(route)

    async def _prompt(self, prompt: str | tuple[int, ...]) -> TextPrompt | TokenPrompt:
        if isinstance(prompt, str):
            return TextPrompt(text=prompt)
        # Adapters are chosen by words.
        return TokenPrompt(token_ids=prompt, text=await self.workers.detokenize(prompt))

    async def _echoed(
        self, body: CompletionBody, prompts: Sequence[TextPrompt | TokenPrompt], sampling: SamplingParams
    ) -> tuple[SamplingParams, tuple[Echo, ...]]:
        """What to ask the worker, and what to put before the answers, where prompts are given back."""
        if body.logprobs is None:
            return sampling, tuple(Echo(text=prompt.text) for prompt in prompts)
        if body.stream and sampling.num_choices > 1:
            raise InvalidInput(
                "A stream of several answers cannot give their prompt back with its log-probabilities.",
                code="unsupported_parameter",
                remedy="Leave out n, stream, echo or logprobs.",
                place="echo",
            )
        echoes = await asyncio.gather(*map(self._echo, prompts))
        return replace(sampling, prompt_logprobs=sampling.logprobs), tuple(echoes)

    async def _echo(self, prompt: TextPrompt | TokenPrompt) -> Echo:
        token_ids = prompt.token_ids if isinstance(prompt, TokenPrompt) else ()
        first_ids = token_ids or (await self.workers.tokenize(prompt)).token_ids
        first_token = await self.workers.detokenize(first_ids[:1]) if first_ids else ""
        return Echo(text=prompt.text, first_token=first_token)

    async def _generate(
        self,
        request: Request,
        body: CompletionBody | ChatBody,
        shape: AnswerShape,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
    ) -> Response:
        request.state.answer_id = shape.answer_id
        options = self._options(request, body.model, body.hilora)
        timeout_seconds = timeout_of(request.headers)
        orders = [
            GenerationRequest(
                # The worker needs an id that no second request can have; a client may repeat its own.
                request_id=shape.answer_id if len(prompts) == 1 else f"{shape.answer_id}-{place}",
                prompt=prompt,
                sampling=sampling,
                options=options,
                timeout_seconds=timeout_seconds,
                priority=body.priority,
                explains_gating=body.hilora.explains_gating,
            )
            for place, prompt in enumerate(prompts)
        ]
        if body.stream:
            return await self._stream(request, orders, shape, includes_usage=body.includes_usage)
        done = await unless_disconnected(
            request, complete_admitted(request, self.admission, self.generate_text, orders)
        )
        for one in done:
            self.metrics.observe_route(one.route)
        headers = answer_headers(done[0].route, done[0].budgets_used) | limit_headers(request)
        return JSONResponse(shape.whole(done), headers=headers)

    async def _stream(
        self, request: Request, orders: Sequence[GenerationRequest], shape: AnswerShape, *, includes_usage: bool
    ) -> Response:
        events = stream_admitted(request, self.admission, self.generate_text, orders)
        # Until a worker has admitted the request, an error is still an HTTP status.
        try:
            first = await unless_disconnected(request, _first(events))
        except BaseException:
            await events.aclose()
            raise
        _, route = first
        assert isinstance(route, RouteResult), "a generation begins with its decision"
        stream = AnswerStream(
            shape,
            num_prompts=len(orders),
            includes_usage=includes_usage,
            on_first_text=lambda: self._observe_first_text(request),
        )
        chunks = stream.chunks(self._observed(first, events))
        headers = answer_headers(route, route.decision.plan.budgets) | limit_headers(request)
        return EventStreamResponse(chunks, work=events, headers=headers)

    async def _observed(
        self, first: NumberedEvent, events: AsyncGenerator[NumberedEvent]
    ) -> AsyncGenerator[NumberedEvent]:
        """The events with the first one before them; every decision is counted."""
        self._observe_route(first)
        yield first
        async for numbered in events:
            self._observe_route(numbered)
            yield numbered

    def _observe_route(self, numbered: NumberedEvent) -> None:
        if isinstance(numbered[1], RouteResult):
            self.metrics.observe_route(numbered[1])

    def _options(self, request: Request, model: str, hilora: HiloraOptions) -> RoutingOptions:
        return hilora.routing_options(
            model,
            tenant=self._tenant(request, named=hilora.tenant),
            session_id=request.headers.get(SESSION_HEADER),
        )

    def _tenant(self, request: Request, *, named: str | None = None) -> str | None:
        presented = the_one(TENANT_HEADER, request.headers.get(TENANT_HEADER), "hilora.tenant", named)
        return tenant_for(caller_of(request), presented, is_trusted=self.trusts_tenants)

    def _observe_first_text(self, request: Request) -> None:
        started: Any = request.state.started_at
        self.metrics.observe_first_text(request.url.path, seconds=time.perf_counter() - started)


async def _first(events: AsyncGenerator[NumberedEvent]) -> NumberedEvent:
    return await anext(events)
