"""The gRPC door: the same use cases for our own clients."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from hilora.errors import Exhausted, HiloraError, InvalidInput, RequestAborted
from hilora_rpc.v1 import registry_pb2, router_pb2, router_pb2_grpc, routing_pb2, worker_pb2
from services.common.errors import mapping_of
from services.router.answer import GenerationEvent, RouteResult
from services.router.entrypoints.router_metrics import Outcome, RouterMetrics
from services.router.entrypoints.tenancy import tenant_of
from services.router.generation import GenerateText
from services.router.infra.catalog_entry import TIERS_FROM_WIRE
from services.router.infra.wire_decisions import MODES_FROM_WIRE, route_to_wire
from services.router.infra.wire_generation import ROLES_FROM_WIRE, event_to_wire, sampling_from_wire
from services.router.request import ChatMessage, ChatPrompt, GenerationRequest, Prompt, TextPrompt
from services.router.routing import RouteText
from services.router.routing_options import AUTO_MODEL, RoutingOptions

SERVICE_NAME = "hilora_rpc.v1.RouterService"

_MODES_CLIENTS_MAY_ASK = (routing_pb2.ROUTING_MODE_PAPER, routing_pb2.ROUTING_MODE_CALIBRATED)


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Implements `RouterService`."""

    def __init__(
        self,
        *,
        route_text: RouteText,
        generate_text: GenerateText,
        metrics: RouterMetrics,
        trusts_tenants: bool = False,
    ) -> None:
        self._trusts_tenants = trusts_tenants
        self._route_text = route_text
        self._generate_text = generate_text
        self._metrics = metrics

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, server)

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:
        """Decide without generating."""
        del context
        with _Counted(self._metrics, "grpc/Route"):
            route = await self._route_text.route(request.text, self._options(request.options))
            self._metrics.observe_route(route)
            return route_to_wire(route)

    async def Generate(
        self, request: router_pb2.RoutedGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[router_pb2.RoutedGenerateEvent]:
        """Decide and generate. A cancelled call aborts the work."""
        with _Counted(self._metrics, "grpc/Generate"):
            order = GenerationRequest(
                request_id=f"{request.request_id or 'rpc'}-{uuid.uuid4().hex}",
                prompt=_prompt(request),
                sampling=sampling_from_wire(request.sampling),
                options=self._options(request.options),
                timeout_seconds=context.time_remaining(),
            )
            events: AsyncGenerator[GenerationEvent] = self._generate_text.stream(order)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, RouteResult):
                        self._metrics.observe_route(event)
                        yield router_pb2.RoutedGenerateEvent(route=route_to_wire(event))
                    else:
                        yield router_pb2.RoutedGenerateEvent(generated=event_to_wire(event))

    def _options(self, options: router_pb2.RoutingOptions) -> RoutingOptions:
        tenant = tenant_of(options.tenant, is_trusted=self._trusts_tenants)
        tier = options.min_trust_tier
        is_given = tier != registry_pb2.TRUST_TIER_UNSPECIFIED
        return replace(_options(options), tenant=tenant, min_trust_tier=TIERS_FROM_WIRE[tier] if is_given else None)


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


def _prompt(request: router_pb2.RoutedGenerateRequest) -> Prompt:
    match request.WhichOneof("input"):
        case "prompt":
            return TextPrompt(text=request.prompt)
        case "chat" if request.chat.messages:
            return ChatPrompt(messages=tuple(_message(message) for message in request.chat.messages))
        case _:
            raise InvalidInput("The request has no input.", remedy="Set prompt, or chat with messages.", place="input")


def _message(message: worker_pb2.ChatMessage) -> ChatMessage:
    role = ROLES_FROM_WIRE.get(message.role)
    if role is None:
        raise InvalidInput("A message has no role.", place="chat.messages.role")
    return ChatMessage(role=role, content=message.content)


def _options(options: router_pb2.RoutingOptions) -> RoutingOptions:
    if options.mode not in (routing_pb2.ROUTING_MODE_UNSPECIFIED, *_MODES_CLIENTS_MAY_ASK):
        raise InvalidInput(
            "This mode cannot be asked for.", remedy="Leave it out, or name a model to pin one.", place="mode"
        )
    gamma = options.gamma if options.HasField("gamma") else None
    # `not (a < b)` also refuses NaN.
    if gamma is not None and not 0 < gamma <= 1:
        raise InvalidInput(f"gamma is {gamma}, outside (0, 1].", place="gamma")
    max_candidates = options.max_candidates if options.HasField("max_candidates") else None
    if max_candidates == 0:
        raise InvalidInput(
            "max_candidates is 0.", remedy="Name the base as model for no adapter.", place="max_candidates"
        )
    return RoutingOptions(
        model=options.model or AUTO_MODEL,
        mode=MODES_FROM_WIRE.get(options.mode),
        gamma=gamma,
        exclude_adapters=frozenset(options.exclude_adapters),
        max_candidates=max_candidates,
        seed=options.seed,
    )
