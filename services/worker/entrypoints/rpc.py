"""The worker's gRPC service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc

from hilora.errors import Unavailable
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.tracing import current_span
from services.worker.engine.output.events import Finished
from services.worker.engine.stats import EngineStats
from services.worker.entrypoints.messages import (
    generate_event,
    generation_request,
    prompt_to_tokenize,
    stats_response,
)
from services.worker.generation import Generation
from services.worker.ports import CatalogView, ComponentTierStats

SERVICE_NAME = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
"""For health and reflection."""


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Answers from the moment the port is open; until `attach` every call is told to come back.

    Args:
        worker_id: a name for people and logs.
        base_model: public name of the base model.
        observe: called with the end of each answer.
    """

    def __init__(
        self, *, worker_id: str, base_model: str, observe: Callable[[Finished], None] = lambda _event: None
    ) -> None:
        self._observe = observe
        self._worker_id = worker_id
        self._base_model = base_model
        self._generation: Generation | None = None
        self._stats: Callable[[], EngineStats] | None = None
        self._host_tier: Callable[[], ComponentTierStats] | None = None
        self._disk_tier: Callable[[], ComponentTierStats] | None = None
        self._catalog: CatalogView | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, server)

    def attach(
        self,
        *,
        generation: Generation,
        stats: Callable[[], EngineStats],
        host_tier: Callable[[], ComponentTierStats],
        disk_tier: Callable[[], ComponentTierStats] | None,
        catalog: CatalogView,
    ) -> None:
        """The model is loaded: take requests. `disk_tier` may block; it is called on a thread of its own."""
        self._generation = generation
        self._stats = stats
        self._host_tier = host_tier
        self._disk_tier = disk_tier
        self._catalog = catalog

    async def Generate(
        self,
        request: worker_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GenerateRequest, worker_pb2.GenerateEvent],  # noqa: ARG002
    ) -> AsyncIterator[worker_pb2.GenerateEvent]:
        """See worker.proto. When the client goes, gRPC closes this iterator, and that aborts the request."""
        if self._generation is None:
            raise _starting()
        events = self._generation.generate(generation_request(request))
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Finished):
                    self._observe(event)
                    _trace(event)
                yield generate_event(event)

    async def Abort(
        self,
        request: worker_pb2.AbortRequest,
        context: grpc.aio.ServicerContext[worker_pb2.AbortRequest, worker_pb2.AbortResponse],  # noqa: ARG002
    ) -> worker_pb2.AbortResponse:
        """See worker.proto."""
        was_running = self._generation is not None and self._generation.abort(request.request_id)
        return worker_pb2.AbortResponse(was_running=was_running)

    async def Tokenize(
        self,
        request: worker_pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[worker_pb2.TokenizeRequest, worker_pb2.TokenizeResponse],  # noqa: ARG002
    ) -> worker_pb2.TokenizeResponse:
        """See worker.proto."""
        if self._generation is None or self._stats is None:
            raise _starting()
        token_ids, tokens = await self._generation.tokenize(prompt_to_tokenize(request))
        max_model_len = self._stats().max_model_len
        return worker_pb2.TokenizeResponse(token_ids=token_ids, tokens=tokens, max_model_len=max_model_len)

    async def Detokenize(
        self,
        request: worker_pb2.DetokenizeRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DetokenizeRequest, worker_pb2.DetokenizeResponse],  # noqa: ARG002
    ) -> worker_pb2.DetokenizeResponse:
        """See worker.proto."""
        if self._generation is None:
            raise _starting()
        return worker_pb2.DetokenizeResponse(text=await self._generation.detokenize(request.token_ids))

    async def Stats(
        self,
        request: worker_pb2.StatsRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[worker_pb2.StatsRequest, worker_pb2.StatsResponse],  # noqa: ARG002
    ) -> worker_pb2.StatsResponse:
        """See worker.proto."""
        if self._stats is None or self._host_tier is None or self._catalog is None:
            raise _starting()
        disk_tier = None if self._disk_tier is None else await asyncio.to_thread(self._disk_tier)
        return stats_response(
            self._stats(),
            host_tier=self._host_tier(),
            disk_tier=disk_tier,
            worker_id=self._worker_id,
            base_model=self._base_model,
            catalog_generation=self._catalog.catalog_generation,
        )


def _trace(event: Finished) -> None:
    span = current_span()
    if span is not None:
        span.set(
            {
                "gen_ai.usage.input_tokens": event.num_prompt_tokens,
                "gen_ai.usage.output_tokens": event.num_completion_tokens,
                "gen_ai.response.finish_reasons": [event.finish_reason.value],
                "hilora.ttft_seconds": event.ttft_seconds,
            }
        )


def _starting() -> Unavailable:
    return Unavailable(
        "The worker is still loading its model.", code="worker_starting", remedy="Try again, or use another worker."
    )
