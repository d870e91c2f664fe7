"""A worker without a model: answers with given words at a given speed, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hilora.errors import HiloraError, StaleCatalogGeneration
from hilora_rpc.v1 import worker_pb2, worker_pb2_grpc
from services.common.rpc_server import RpcServer
from services.common.tls import TlsIdentity


class FakeWorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Set the attributes at any moment; read what happened from the lists."""

    def __init__(
        self,
        *,
        name: str = "fake-worker",
        words: tuple[str, ...] = ("Paris", " is", " the", " capital."),
        seconds_per_token: float = 0.0,
        catalog_generation: int = 0,
        base_model: str = "/models/tiny-base",
        max_model_len: int = 512,
    ) -> None:
        self.name = name
        self.words = words
        self.seconds_per_token = seconds_per_token
        self.catalog_generation = catalog_generation
        self.base_model = base_model
        self.max_model_len = max_model_len
        self.max_num_seqs = 8
        self.is_draining = False
        self.is_stuck = False
        self.is_device_lost = False
        self.fails_with: HiloraError | None = None
        self.fails_after_tokens = 0
        self.ends_without_finish = False
        self.dropped_adapter_ids: set[str] = set()
        self.requests: list[worker_pb2.GenerateRequest] = []
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.num_cached_tokens = 0
        self.num_running = 0
        self.num_stats_calls = 0
        self.seconds_per_stats = 0.0
        self.seconds_in_queue = 0.0
        """Between a request's arrival and its Started."""

    async def Generate(self, request, context) -> AsyncIterator[worker_pb2.GenerateEvent]:
        self.requests.append(request)
        self.num_running += 1
        try:
            async for event in self._events(request):
                yield event
            self.finished.append(request.request_id)
        finally:
            self.num_running -= 1
            if request.request_id not in self.finished:
                self.aborted.append(request.request_id)

    async def _events(self, request) -> AsyncIterator[worker_pb2.GenerateEvent]:
        if self.fails_with is not None and self.fails_after_tokens == 0:
            raise self.fails_with
        for budget in request.plan.budgets:
            if budget.adapter_id in self.dropped_adapter_ids:
                raise StaleCatalogGeneration(f"{budget.adapter_id} is gone")
        await asyncio.sleep(self.seconds_in_queue)
        num_prompt_tokens = (
            len(request.prompt.split())
            or len(request.tokens.token_ids)
            or sum(len(message.content.split()) for message in request.chat.messages)
        )
        yield worker_pb2.GenerateEvent(started=worker_pb2.Started(num_prompt_tokens=num_prompt_tokens))
        words = self.words[: request.sampling.max_tokens or 16]
        choices = range(max(1, request.sampling.n))
        for position, word in enumerate(words):
            if self.fails_with is not None and position == self.fails_after_tokens:
                raise self.fails_with
            await asyncio.sleep(self.seconds_per_token)
            for choice_idx in choices:
                yield worker_pb2.GenerateEvent(delta=self._delta(request.sampling, position, word, choice_idx))
        if self.ends_without_finish:
            return
        is_cut = len(words) < len(self.words)
        for choice_idx in choices:
            finished = worker_pb2.Finished(
                finish_reason=worker_pb2.FINISH_REASON_LENGTH if is_cut else worker_pb2.FINISH_REASON_STOP,
                num_prompt_tokens=num_prompt_tokens,
                num_completion_tokens=len(words),
                budgets_used=request.plan.budgets,
                ttft_seconds=0.01,
                e2e_latency_seconds=0.02,
                choice_idx=choice_idx,
                num_cached_tokens=self.num_cached_tokens,
            )
            if request.explains_gating:
                finished.num_gated_tokens = num_prompt_tokens + len(words)
                finished.gating.append(_gating(request.plan, num_tokens=finished.num_gated_tokens))
            yield worker_pb2.GenerateEvent(finished=finished)

    def _delta(self, sampling, position, word, choice_idx) -> worker_pb2.TextDelta:
        delta = worker_pb2.TextDelta(text=word, token_ids=[position], choice_idx=choice_idx)
        if sampling.HasField("logprobs"):
            delta.logprobs.append(_position(position, word, num_top=sampling.logprobs))
        if position == choice_idx == 0 and sampling.HasField("prompt_logprobs"):
            delta.prompt_logprobs.append(_position(99, " prompt", num_top=sampling.prompt_logprobs))
        return delta

    async def Tokenize(self, request, context) -> worker_pb2.TokenizeResponse:
        words = request.prompt.split() or [
            word for message in request.chat.messages for word in message.content.split()
        ]
        if not request.omits_special_tokens:
            words = ["<s>", *words]
        return worker_pb2.TokenizeResponse(token_ids=range(len(words)), tokens=words, max_model_len=self.max_model_len)

    async def Detokenize(self, request, context) -> worker_pb2.DetokenizeResponse:
        return worker_pb2.DetokenizeResponse(text=" ".join(f"t{token_id}" for token_id in request.token_ids))

    async def Abort(self, request, context) -> worker_pb2.AbortResponse:
        return worker_pb2.AbortResponse(was_running=False)

    async def Stats(self, request, context) -> worker_pb2.StatsResponse:
        self.num_stats_calls += 1
        await asyncio.sleep(self.seconds_per_stats)
        return worker_pb2.StatsResponse(
            worker_id=self.name,
            base_model=self.base_model,
            catalog_generation=self.catalog_generation,
            num_running=self.num_running,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            is_draining=self.is_draining,
            is_stuck=self.is_stuck,
            is_device_lost=self.is_device_lost,
        )


def _gating(plan, *, num_tokens) -> worker_pb2.ModuleGating:
    """Of each adapter's components, the first acts at every token, the second at one less, and so on."""
    return worker_pb2.ModuleGating(
        module_path="model.layers.0.mlp.up_proj",
        adapters=[
            worker_pb2.AdapterGating(
                adapter_id=budget.adapter_id,
                num_tokens_fired=[max(0, num_tokens - place) for place in range(budget.num_rocs)],
            )
            for budget in plan.budgets
        ],
    )


def _position(token_id, word, *, num_top) -> worker_pb2.PositionLogprobs:
    """A token of probability one half, and others of falling probability."""
    top = [
        worker_pb2.TokenLogprob(token_id=token_id + place, logprob=-0.5 - place, token_bytes=f"{word}{place}".encode())
        for place in range(num_top)
    ]
    chosen = worker_pb2.TokenLogprob(token_id=token_id, logprob=-0.5, token_bytes=word.encode())
    return worker_pb2.PositionLogprobs(chosen=chosen, top=top)


class FakeWorker:
    """A `FakeWorkerService` that listens. `start` after `stop` takes the same port again."""

    def __init__(self, *, identity: TlsIdentity | None = None, **service_arguments) -> None:
        self._identity = identity
        self.service = FakeWorkerService(**service_arguments)
        self._port = 0
        self._server: RpcServer | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = RpcServer(
            host="127.0.0.1",
            port=self._port,
            register=[lambda server: worker_pb2_grpc.add_WorkerServiceServicer_to_server(self.service, server)],
            service_names=["hilora_rpc.v1.WorkerService"],
            identity=self._identity,
        )
        await self._server.start()
        self._port = int(self._server.address.rpartition(":")[2])

    async def stop(self, *, grace_seconds: float = 0) -> None:
        if self._server is not None:
            await self._server.stop(grace_seconds=grace_seconds)
            self._server = None
