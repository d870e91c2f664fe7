"""One worker as the router sees it: its last known state, and its generate call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from hilora.errors import HiloraError, Unavailable
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.errors import error_from_rpc
from services.common.rpc_client import open_channel
from services.common.tls import TlsIdentity
from services.common.tracing import outgoing_metadata
from services.router.answer import GenerationFinished, TextDelta, TokenizedPrompt, WorkerEvent
from services.router.infra.wire_generation import event_from_wire, order_to_wire, tokenize_to_wire, tokenized_from_wire
from services.router.infra.workers.circuit import Circuit
from services.router.placement import WorkerView
from services.router.ports import WorkerStatus
from services.router.request import Prompt, WorkOrder

_STATS_TIMEOUT_SECONDS = 2.0
# A worker that loads an adapter or is short of CPU may answer late; one that is gone refuses at once.
_MAX_LATE_POLLS = 3

LOST_CODES = frozenset(
    {"worker_lost", "worker_stalled", "worker_draining", "worker_starting", "engine_stuck", "device_lost"}
)
"""What a worker that cannot serve anybody now answers, or leaves behind."""
LEAVING_CODES = frozenset({"worker_draining", "worker_starting"})
"""What is no failure: a worker that comes or goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerState:
    """What a worker said about itself when it was last asked."""

    base_model: str
    catalog_generation: int
    num_requests: int
    """Running and waiting."""
    max_num_seqs: int
    max_model_len: int
    is_draining: bool
    """Whether it takes no new requests: it is about to stop, or a step of its engine does not return."""
    kv_cache_usage: float = 0.0
    """Share of its KV cache in use, 0 to 1."""
    resident_adapter_ids: frozenset[str] = frozenset()
    """Adapters whose components are on its device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """How long a worker's stream may say nothing before the worker counts as lost to it."""

    first_event_seconds: float = 60.0
    """Until the request is admitted. Each poll that the worker answers meanwhile begins it anew: a request may wait in
    the queue of a worker that is well for as long as the request's own time allows."""
    stall_seconds: float = 120.0
    """Between two events; includes the reading of the prompt."""


class WorkerClient:
    """The router's end of one worker.

    Args:
        address: `host:port` of the worker's gRPC server.
        silence: how long a stream may say nothing.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(self, address: str, *, silence: Silence | None = None, identity: TlsIdentity | None = None) -> None:
        self.address = address
        self.circuit = Circuit(monotonic=time.monotonic)
        self.state: WorkerState | None = None
        """None while the worker does not answer."""
        self.num_in_flight = 0
        """Requests of this router that are there now."""
        self._silence = silence or Silence()
        self._polled_at = time.monotonic()
        self._sent_adapter_ids: set[str] = set()
        self._num_late_polls = 0
        self._not_admitted: set[asyncio.Timeout] = set()
        self._channel = open_channel(address, identity=identity)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)

    @property
    def _peer(self) -> str:
        return f"worker at {self.address}"

    @property
    def is_live(self) -> bool:
        """Whether the worker answers and takes requests."""
        return self.state is not None and not self.state.is_draining and self.circuit.takes_requests

    def view(self, *, prefix_share: float) -> WorkerView:
        """What placement goes by. Adapters that were sent there since the last poll count as held."""
        state = self.state
        assert state is not None, "only a worker that answered can be chosen"
        return WorkerView(
            address=self.address,
            num_reported=state.num_requests,
            num_in_flight=self.num_in_flight,
            max_num_seqs=state.max_num_seqs,
            kv_cache_usage=state.kv_cache_usage,
            resident_adapter_ids=state.resident_adapter_ids | self._sent_adapter_ids,
            prefix_share=prefix_share,
            age_seconds=time.monotonic() - self._polled_at,
        )

    def status(self, *, is_leaving: bool) -> WorkerStatus:
        """What people and metrics see of it."""
        state = self.state
        return WorkerStatus(
            address=self.address,
            is_live=self.is_live and not is_leaving,
            is_leaving=is_leaving or (state is not None and state.is_draining),
            circuit=str(self.circuit.state),
            num_in_flight=self.num_in_flight,
            num_requests=0 if state is None else state.num_requests,
            catalog_generation=0 if state is None else state.catalog_generation,
            kv_cache_usage=0.0 if state is None else state.kv_cache_usage,
            num_resident_adapters=0 if state is None else len(state.resident_adapter_ids),
        )

    async def poll(self) -> None:
        """Ask for the state; a worker that refuses, or is late several times in a row, has none."""
        try:
            stats = await self._stub.Stats(worker_pb2.StatsRequest(), timeout=_STATS_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._num_late_polls += 1
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or self._num_late_polls >= _MAX_LATE_POLLS:
                self.state = None
            return
        self._num_late_polls = 0
        self._polled_at = time.monotonic()
        self._sent_adapter_ids.clear()
        self.state = WorkerState(
            base_model=stats.base_model,
            catalog_generation=stats.catalog_generation,
            num_requests=stats.num_running + stats.num_waiting,
            max_num_seqs=stats.max_num_seqs,
            max_model_len=stats.max_model_len,
            is_draining=stats.is_draining or stats.is_stuck or stats.is_device_lost,
            kv_cache_usage=stats.kv_cache_usage,
            resident_adapter_ids=frozenset(stats.resident_adapter_ids),
        )
        if not (stats.is_stuck or stats.is_device_lost):
            self._is_heard()

    def _is_heard(self) -> None:
        """Give the requests in the worker's queue their time anew."""
        expires_at = asyncio.get_running_loop().time() + self._silence.first_event_seconds
        for limit in self._not_admitted:
            if not limit.expired():
                limit.reschedule(expires_at)

    async def generate(self, order: WorkOrder, *, timeout_seconds: float) -> AsyncGenerator[WorkerEvent]:
        """The worker's events. Closing the generator cancels the call, which aborts the request over there.

        Raises:
            Unavailable: `request_timeout`; `worker_lost`, if the connection broke or the stream ended too early;
                `worker_stalled`, if it said nothing for too long.
            HiloraError: what the worker raised.
        """
        self.num_in_flight += 1
        attempt = self.circuit.begin()
        self._sent_adapter_ids.update(budget.adapter_id for budget in order.plan.budgets if budget.num_rocs > 0)
        num_open = order.request.sampling.num_choices
        try:
            async with aclosing(self._events(order, timeout_seconds=timeout_seconds)) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        attempt.answers()
                    elif isinstance(event, GenerationFinished):
                        num_open -= 1
                        if num_open == 0:
                            attempt.succeeded()
                    yield event
            if num_open > 0:
                raise _lost(f"The {self._peer} ended its stream before the answer was finished.")
        except HiloraError as error:
            if error.code in LOST_CODES - LEAVING_CODES:
                attempt.failed()
            raise
        finally:
            self.num_in_flight -= 1
            attempt.abandoned()

    async def _events(self, order: WorkOrder, *, timeout_seconds: float) -> AsyncGenerator[WorkerEvent]:
        """What the worker says, for as long as it is not silent for too long."""
        peer = self._peer
        call = self._stub.Generate(order_to_wire(order), timeout=timeout_seconds, metadata=outgoing_metadata())
        patience = self._silence.first_event_seconds
        is_admitted = False
        try:
            messages = aiter(call)
            while True:
                try:
                    async with asyncio.timeout(patience) as limit:
                        if is_admitted:
                            message = await anext(messages)
                        else:
                            message = await self._first(messages, limit)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise _lost(f"The {peer} said nothing for {patience:g} seconds.", code="worker_stalled") from error
                is_admitted = True
                patience = self._silence.stall_seconds
                yield event_from_wire(message)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, peer=peer, timeout_seconds=timeout_seconds) from error
        finally:
            call.cancel()

    async def _first(
        self, messages: AsyncIterator[worker_pb2.GenerateEvent], limit: asyncio.Timeout
    ) -> worker_pb2.GenerateEvent:
        self._not_admitted.add(limit)
        try:
            return await anext(messages)
        finally:
            self._not_admitted.discard(limit)

    async def tokenize(self, prompt: Prompt, *, omits_special_tokens: bool, timeout_seconds: float) -> TokenizedPrompt:
        """The tokens that a prompt would become. Raises as `generate`."""
        request = tokenize_to_wire(prompt, omits_special_tokens=omits_special_tokens)
        try:
            return tokenized_from_wire(await self._stub.Tokenize(request, timeout=timeout_seconds))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, peer=self._peer, timeout_seconds=timeout_seconds) from error

    async def detokenize(self, token_ids: Sequence[int], *, timeout_seconds: float) -> str:
        """The text of tokens. Raises as `generate`."""
        request = worker_pb2.DetokenizeRequest(token_ids=token_ids)
        try:
            return (await self._stub.Detokenize(request, timeout=timeout_seconds)).text
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, peer=self._peer, timeout_seconds=timeout_seconds) from error

    async def close(self) -> None:
        """Let go of the connection; calls in flight are cancelled."""
        await self._channel.close()

    @staticmethod
    def _translated(error: grpc.aio.AioRpcError, *, peer: str, timeout_seconds: float) -> Exception:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(
                f"No answer within {timeout_seconds:g} seconds.",
                code="request_timeout",
                remedy="Ask for fewer tokens, or raise HILORA_ROUTER_REQUEST_TIMEOUT_SECONDS.",
            )
        translated = error_from_rpc(error, peer=peer)
        # A bare UNAVAILABLE or CANCELLED comes from the connection, not from the worker's own error tree.
        if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} and translated.remedy is None:
            return _lost(f"The {peer} went away: {error.details()}")
        return translated


def _lost(message: str, *, code: str = "worker_lost") -> Unavailable:
    return Unavailable(message, code=code, remedy="Send the request again.")
