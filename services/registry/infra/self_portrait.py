"""Texts that a worker generates with the adapter switched on: what the adapter says when nobody asks it anything."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc

from hilora.adapter import RocBasis
from hilora.errors import Conflict, HiloraError, InvalidInput, Unavailable, UnknownAdapter
from hilora.routing_explanation import explicit_decision
from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from hilora.self_portrait import (
    PORTRAIT_TEMPERATURE,
    PORTRAIT_TOKENS,
    PortraitPrompt,
    portrait_prompts,
    portrait_texts,
)
from hilora_rpc.v1 import routing_pb2, worker_pb2, worker_pb2_grpc
from services.common.errors import error_from_rpc
from services.common.rpc_client import open_channel
from services.common.tls import TlsIdentity
from services.registry.artifact import ProfileSubject, SamplesSource

_AT_ONCE = 8
_PRIORITY = 1
"""After ordinary requests: nobody waits for a portrait."""

_SCORES = {
    RocScore.ACTIVATION: routing_pb2.ROC_SCORE_ACTIVATION,
    RocScore.CONTRIBUTION: routing_pb2.ROC_SCORE_CONTRIBUTION,
}
_SCOPES = {
    GateScope.PER_ADAPTER: routing_pb2.GATE_SCOPE_PER_ADAPTER,
    GateScope.GLOBAL: routing_pb2.GATE_SCOPE_GLOBAL,
}
_BASES = {RocBasis.SVD: routing_pb2.ROC_BASIS_SVD, RocBasis.TRAINED: routing_pb2.ROC_BASIS_TRAINED}


class SelfPortraitTexts:
    """See `ProfileTexts`.

    Args:
        worker_address: `host:port` of a worker's gRPC door.
        timeout_seconds: longest time one text may take, the worker's queue included.
        identity: the certificate to show; None speaks without TLS.
    """

    source = SamplesSource.SELF_PORTRAIT

    def __init__(
        self, worker_address: str, *, timeout_seconds: float = 120.0, identity: TlsIdentity | None = None
    ) -> None:
        self._identity = identity
        self._worker_address = worker_address
        self._timeout_seconds = timeout_seconds

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        """See `ProfileTexts.texts`; the same texts whenever the same worker is asked for the same version.

        Raises:
            HiloraError: what the worker raised.
        """
        plan = explicit_decision(
            adapter_id=subject.adapter_id,
            adapter_name=subject.adapter_name,
            lora_rank=subject.lora_rank,
            catalog_generation=subject.catalog_generation,
        ).plan
        places = asyncio.Semaphore(_AT_ONCE)
        channel = open_channel(self._worker_address, identity=self._identity)
        stub = worker_pb2_grpc.WorkerServiceStub(channel)

        async def generated(prompt: PortraitPrompt) -> str:
            async with places:
                return await self._text(stub, plan, prompt)

        tasks = [asyncio.create_task(generated(prompt)) for prompt in portrait_prompts()]
        try:
            return portrait_texts(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()

    async def _text(self, stub: worker_pb2_grpc.WorkerServiceStub, plan: RoutingPlan, prompt: PortraitPrompt) -> str:
        """One text, opening included; empty if this base cannot begin from nothing."""
        peer = f"worker at {self._worker_address}"
        request = worker_pb2.GenerateRequest(
            request_id=f"portrait-{uuid.uuid4().hex}",
            prompt=prompt.opening,
            plan=_to_wire(plan),
            priority=_PRIORITY,
            sampling=worker_pb2.SamplingParams(
                max_tokens=PORTRAIT_TOKENS, temperature=PORTRAIT_TEMPERATURE, seed=prompt.seed
            ),
        )
        pieces: list[str] = []
        try:
            # The stubs do not say that a call can be iterated.
            events: AsyncIterator[worker_pb2.GenerateEvent] = stub.Generate(request, timeout=self._timeout_seconds)  # pyright: ignore[reportAssignmentType]
            pieces.extend([event.delta.text async for event in events])
        except grpc.aio.AioRpcError as error:
            raised = error_from_rpc(error, peer=peer)
            if raised.code == "empty_prompt":
                return ""
            raise self._meant(raised, error.code()) from error
        return prompt.text("".join(pieces))

    def _meant(self, error: HiloraError, status: grpc.StatusCode) -> HiloraError:
        """What a worker's refusal means for the job: only an adapter that cannot run at all is a reason to give up."""
        is_late = status in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
        is_behind = isinstance(error, Conflict | UnknownAdapter)
        if is_late or is_behind or not isinstance(error, InvalidInput | Unavailable):
            return Unavailable(
                f"The worker at {self._worker_address} made no self-portrait: {error.message}",
                code="self_portrait_failed",
                remedy="It is tried again; until then the adapter can be named.",
            )
        return error


def _to_wire(plan: RoutingPlan) -> routing_pb2.RoutingPlan:
    return routing_pb2.RoutingPlan(
        budgets=[
            routing_pb2.RocBudget(
                adapter_id=budget.adapter_id,
                adapter_name=budget.adapter_name,
                lora_rank=budget.lora_rank,
                num_rocs=budget.num_rocs,
                weight=budget.weight,
                reading_weight=budget.reading_weight,
            )
            for budget in plan.budgets
        ],
        gate=routing_pb2.GateParameters(
            score=_SCORES[plan.gate.score],
            scope=_SCOPES[plan.gate.scope],
            basis=_BASES[plan.gate.basis],
            eta=plan.gate.eta,
        ),
        catalog_generation=plan.catalog_generation,
    )
