"""The gRPC door: the same use cases for our own clients."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from hilora.errors import Exhausted, HiloraError, InvalidInput, RequestAborted
from hilora_rpc.v1 import router_pb2, router_pb2_grpc, worker_pb2
from services.common.errors import mapping_of
from services.common.inference_keys import Caller, InferenceScope
from services.router.admission import Admission, probable_tokens
from services.router.answer import GenerationEvent, RouteResult
from services.router.entrypoints.access import RpcGate, tenant_for
from services.router.entrypoints.router_metrics import Outcome, RouterMetrics
from services.router.entrypoints.rpc_options import options_from_wire
from services.router.generation import GenerateText
from services.router.infra.wire_decisions import route_to_wire
from services.router.infra.wire_generation import (
    event_to_wire,
    message_from_wire,
    sampling_from_wire,
    tokenized_to_wire,
)
from services.router.models import ModelDirectory
from services.router.ports import TextEmbedder, Workers
from services.router.request import ChatMessage, ChatPrompt, GenerationRequest, Prompt, TextPrompt
from services.router.routing import RouteText
from services.router.routing_options import RoutingOptions

SERVICE_NAME = "hilora_rpc.v1.RouterService"

_MAX_EMBEDDED = 2048


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Implements `RouterService`."""

    def __init__(
        self,
        *,
        route_text: RouteText,
        generate_text: GenerateText,
        models: ModelDirectory,
        embedder: TextEmbedder,
        workers: Workers,
        admission: Admission,
        gate: RpcGate,
        metrics: RouterMetrics,
        trusts_tenants: bool = False,
    ) -> None:
        self._trusts_tenants = trusts_tenants
        self._models = models
        self._admission = admission
        self._gate = gate
        self._embedder = embedder
        self._workers = workers
        self._route_text = route_text
        self._generate_text = generate_text
        self._metrics = metrics

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, server)

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        """Decide without generating."""
        with _Counted(self._metrics, "grpc/Route"):
            caller = self._gate.require(context, InferenceScope.INFER)
            options = self._options(request.options, caller)
            async with self._admission.admit(caller, num_tokens=0):
                route = await self._route_text.route(request.text, options)
            self._metrics.observe_route(route)
            return route_to_wire(route)

    async def Generate(
        self, request: router_pb2.RoutedGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[router_pb2.RoutedGenerateEvent]:
        """Decide and generate. A cancelled call aborts the work."""
        with _Counted(self._metrics, "grpc/Generate"):
            caller = self._gate.require(context, InferenceScope.INFER)
            order = GenerationRequest(
                request_id=f"{request.request_id or 'rpc'}-{uuid.uuid4().hex}",
                prompt=_prompt(request),
                sampling=sampling_from_wire(request.sampling),
                options=self._options(request.options, caller),
                timeout_seconds=context.time_remaining(),
                priority=request.priority,
                explains_gating=request.explains_gating,
            )
            async with self._admission.admit(caller, num_tokens=probable_tokens([order])) as admitted:
                events: AsyncGenerator[GenerationEvent] = self._generate_text.stream(order)
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, RouteResult):
                            self._metrics.observe_route(event)
                            yield router_pb2.RoutedGenerateEvent(route=route_to_wire(event))
                        else:
                            admitted.watch((0, event))
                            yield router_pb2.RoutedGenerateEvent(generated=event_to_wire(event))

    async def Embed(self, request: router_pb2.EmbedRequest, context: Any) -> router_pb2.EmbedResponse:
        """Embed texts as adapters' samples are."""
        with _Counted(self._metrics, "grpc/Embed"):
            caller = self._gate.require(context, InferenceScope.INFER)
            if not 1 <= len(request.texts) <= _MAX_EMBEDDED:
                raise InvalidInput(
                    f"{len(request.texts)} texts are asked for.", remedy=f"Send 1 to {_MAX_EMBEDDED}.", place="texts"
                )
            async with self._admission.admit(caller, num_tokens=0) as admitted:
                vectors = await asyncio.gather(*(self._embedder.embed(text) for text in request.texts))
                admitted.add(await self._embedder.count_tokens(request.texts))
            return router_pb2.EmbedResponse(
                encoder_id=self._embedder.encoder_id or "",
                embeddings=[router_pb2.Embedding(values=vector_E) for vector_E in vectors],
            )

    async def ListModels(self, request: router_pb2.ListModelsRequest, context: Any) -> router_pb2.ListModelsResponse:
        """Every value of `model`."""
        with _Counted(self._metrics, "grpc/ListModels"):
            caller = self._gate.require(context, InferenceScope.READ)
            tenant = tenant_for(caller, request.tenant, is_trusted=self._trusts_tenants)
            return router_pb2.ListModelsResponse(
                models=[
                    router_pb2.Model(
                        id=model.model_id,
                        root=model.root,
                        parent=model.parent or "",
                        created_at=model.created_at,
                        max_model_len=model.max_model_len,
                    )
                    for model in self._models.all_models(tenant)
                ]
            )

    async def Tokenize(self, request: worker_pb2.TokenizeRequest, context: Any) -> worker_pb2.TokenizeResponse:
        """The tokens that a prompt would become."""
        with _Counted(self._metrics, "grpc/Tokenize"):
            caller = self._gate.require(context, InferenceScope.INFER)
            prompt = _prompt(request)
            async with self._admission.admit(caller, num_tokens=0):
                tokenized = await self._workers.tokenize(prompt, omits_special_tokens=request.omits_special_tokens)
            return tokenized_to_wire(tokenized)

    async def Detokenize(self, request: worker_pb2.DetokenizeRequest, context: Any) -> worker_pb2.DetokenizeResponse:
        """The text of tokens."""
        with _Counted(self._metrics, "grpc/Detokenize"):
            caller = self._gate.require(context, InferenceScope.INFER)
            async with self._admission.admit(caller, num_tokens=0):
                return worker_pb2.DetokenizeResponse(text=await self._workers.detokenize(request.token_ids))

    def _options(self, options: router_pb2.RoutingOptions, caller: Caller) -> RoutingOptions:
        tenant = tenant_for(caller, options.tenant, is_trusted=self._trusts_tenants)
        return options_from_wire(options, tenant=tenant)


class _Counted:
    """Counts one call when its block ends, with the outcome that the block's end shows."""

    def __init__(self, metrics: RouterMetrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._metrics.count(self._endpoint, _outcome(error), seconds=time.perf_counter() - self._started)


def _outcome(error: BaseException | None) -> Outcome:
    match error:
        case None:
            return Outcome.OK
        case RequestAborted():
            return Outcome.ABORTED
        case Exhausted():
            return Outcome.EXHAUSTED
        case HiloraError():
            return Outcome.REFUSED if mapping_of(error).http_status < 500 else Outcome.FAILED
        case Exception():
            return Outcome.FAILED
        case _:  # CancelledError and GeneratorExit: the client is gone
            return Outcome.ABORTED


def _prompt(request: router_pb2.RoutedGenerateRequest | worker_pb2.TokenizeRequest) -> Prompt:
    match request.WhichOneof("input"):
        case "prompt":
            return TextPrompt(text=request.prompt)
        case "chat" if request.chat.messages:
            return ChatPrompt(
                messages=tuple(_message(message) for message in request.chat.messages),
                tools=request.chat.tools,
                continues_final_message=request.chat.continues_final_message,
            )
        case _:
            raise InvalidInput("The request has no input.", remedy="Set prompt, or chat with messages.", place="input")


def _message(wire: worker_pb2.ChatMessage) -> ChatMessage:
    message = message_from_wire(wire)
    if message is None:
        raise InvalidInput("A message has no role.", place="chat.messages.role")
    return message
