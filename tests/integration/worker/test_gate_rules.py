"""Gate rules over the wire: every one of them answers, and what contradicts itself is refused."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from safetensors.torch import save

from hilora.adapter import adapter_id_of
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.learned_gate import gate_tensors
from hilora.routing_plan import GateRule
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.common.rpc_client import translated_errors
from tests.builders.gates import ADAPTIVE_RULES, make_gate

_RANK = 4


async def _answer(stack: Any, plan: routing_pb2.RoutingPlan, request_id: str = "r") -> list[int]:
    request = worker_pb2.GenerateRequest(
        request_id=request_id,
        prompt="hello there",
        plan=plan,
        sampling=worker_pb2.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8),
    )
    with translated_errors("worker"):
        return [token async for event in stack.stub.Generate(request) for token in event.delta.token_ids]


def _stored_gate(stack: Any, rule: GateRule) -> str:
    """A gate for all of the stack's adapters, in the worker's folder."""
    ranks = {adapter_id: dict.fromkeys(stack.shapes, _RANK) for adapter_id in stack.adapter_ids.values()}
    tensors, metadata = gate_tensors(make_gate(rule, ranks=ranks, shapes=stack.shapes))
    content = save(tensors, metadata=metadata)
    gate_id = adapter_id_of("mine", hashlib.sha256(content).hexdigest())
    (stack.gates_dir / f"{gate_id}.safetensors").write_bytes(content)
    return gate_id


def _plan(stack: Any, rule: GateRule, /, **gate: Any) -> routing_pb2.RoutingPlan:
    plan = stack.plan("a", "b", "c", num_rocs=_RANK)
    plan.gate.rule = routing_pb2.GateRule.Value(f"GATE_RULE_{rule.name}")
    if rule is GateRule.SMORA:
        plan.gate.basis = routing_pb2.ROC_BASIS_TRAINED
    for name, value in gate.items():
        setattr(plan.gate, name, value)
    return plan


class TestAnswers:
    async def test_every_rule_alone_and_all_together(self, stack) -> None:
        plans = {
            rule: _plan(stack, rule, **({"gate_id": _stored_gate(stack, rule)} if rule.is_learned else {}))
            for rule in ADAPTIVE_RULES
        }
        alone = [await _answer(stack, plan) for plan in plans.values()]
        together = await asyncio.gather(*(_answer(stack, plan, rule.value) for rule, plan in plans.items()))
        assert together == alone
        assert all(len(tokens) == 8 for tokens in alone)

    async def test_a_sender_that_knows_no_rules_means_components(self, stack) -> None:
        plan = stack.plan("a", num_rocs=2)
        assert plan.gate.rule == routing_pb2.GATE_RULE_UNSPECIFIED
        assert await _answer(stack, plan) == await _answer(stack, _rocs(stack))


def _rocs(stack: Any) -> routing_pb2.RoutingPlan:
    plan = stack.plan("a", num_rocs=2)
    plan.gate.rule = routing_pb2.GATE_RULE_ROCS
    plan.gate.temperature = 1.0
    return plan


class TestRefusals:
    @pytest.mark.parametrize(
        ("rule", "gate"),
        [
            (GateRule.ARROW, {"temperature": 0.0}),
            (GateRule.ARROW, {"temperature": float("nan")}),
            (GateRule.ARROW, {"gate_id": "g@1"}),
            (GateRule.SPECTR, {"basis": routing_pb2.ROC_BASIS_TRAINED}),
            (GateRule.SMORA, {"basis": routing_pb2.ROC_BASIS_SVD, "gate_id": "g@1"}),
            (GateRule.RAMOLE, {}),
            (GateRule.ROCS, {"rule": 99}),
        ],
    )
    async def test_gates_that_contradict_themselves(self, stack, rule, gate) -> None:
        with pytest.raises(InvalidInput) as caught:
            await _answer(stack, _plan(stack, rule, **gate))
        assert caught.value.code == "invalid_plan"

    @pytest.mark.parametrize("gate_id", ["mine@0123456789ab", "../../etc/passwd"])
    async def test_gates_that_are_not_there(self, stack, gate_id) -> None:
        with pytest.raises(UnknownAdapter) as caught:
            await _answer(stack, _plan(stack, GateRule.RAMOLE, gate_id=gate_id))
        assert caught.value.code == "unknown_gate"

    async def test_a_gate_of_another_rule(self, stack) -> None:
        gate_id = _stored_gate(stack, GateRule.PHATGOOSE)
        with pytest.raises(InvalidInput) as caught:
            await _answer(stack, _plan(stack, GateRule.RAMOLE, gate_id=gate_id))
        assert caught.value.code == "gate_rule_mismatch"
