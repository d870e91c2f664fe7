"""One worker as the router sees it: its last known state, and its generate call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc

from hilora.errors import Unavailable
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.errors import error_from_rpc
from services.common.rpc_client import open_channel
from services.common.tls import TlsIdentity
from services.router.answer import GenerationFinished, TokenizedPrompt, WorkerEvent
from services.router.infra.wire_generation import event_from_wire, order_to_wire, tokenize_to_wire, tokenized_from_wire
from services.router.request import Prompt, WorkOrder

_STATS_TIMEOUT_SECONDS = 2.0
# A worker that loads an adapter or is short of CPU may answer late; one that is gone refuses at once.
_MAX_LATE_POLLS = 3


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


class WorkerClient:
    """The router's end of one worker.

    Args:
        address: `host:port` of the worker's gRPC server.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(self, address: str, *, identity: TlsIdentity | None = None) -> None:
        self.address = address
        self.state: WorkerState | None = None
        """None while the worker does not answer."""
        self._num_in_flight = 0
        self._num_late_polls = 0
        self._channel = open_channel(address, identity=identity)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)

    @property
    def _peer(self) -> str:
        return f"worker at {self.address}"

    @property
    def is_live(self) -> bool:
        """Whether the worker answers and takes requests."""
        return self.state is not None and not self.state.is_draining

    @property
    def load(self) -> float:
        """Requests per place in the batch. What this router sent since the last poll counts as well."""
        assert self.state is not None, "only a worker that answered has a load"
        return max(self.state.num_requests, self._num_in_flight) / max(1, self.state.max_num_seqs)

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
        self.state = WorkerState(
            base_model=stats.base_model,
            catalog_generation=stats.catalog_generation,
            num_requests=stats.num_running + stats.num_waiting,
            max_num_seqs=stats.max_num_seqs,
            max_model_len=stats.max_model_len,
            is_draining=stats.is_draining or stats.is_stuck or stats.is_device_lost,
        )

    async def generate(self, order: WorkOrder, *, timeout_seconds: float) -> AsyncGenerator[WorkerEvent]:
        """The worker's events. Closing the generator cancels the call, which aborts the request over there.

        Raises:
            Unavailable: `request_timeout`; `worker_lost`, if the connection broke or the stream ended too early.
            HiloraError: what the worker raised.
        """
        peer = self._peer
        self._num_in_flight += 1
        call = self._stub.Generate(order_to_wire(order), timeout=timeout_seconds)
        num_open = order.request.sampling.num_choices
        try:
            async for message in call:
                event = event_from_wire(message)
                num_open -= isinstance(event, GenerationFinished)
                yield event
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, peer=peer, timeout_seconds=timeout_seconds) from error
        finally:
            self._num_in_flight -= 1
            call.cancel()
        if num_open > 0:
            raise _lost(f"The {peer} ended its stream before the answer was finished.")

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


def _lost(message: str) -> Unavailable:
    return Unavailable(message, code="worker_lost", remedy="Send the request again.")
