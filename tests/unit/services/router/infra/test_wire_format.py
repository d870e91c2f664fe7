from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.errors import Unavailable
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocBudget, RocScore, RoutingMode, RoutingPlan
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.router.answer import FinishReason, GenerationFinished, GenerationStarted, TextDelta
from services.router.infra import wire_decisions, wire_generation
from services.router.request import (
    ChatMessage,
    ChatPrompt,
    ChatRole,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    WorkOrder,
)

_BUDGETS = st.integers(1, 512).flatmap(
    lambda rank: st.builds(
        RocBudget,
        adapter_id=st.text(),
        adapter_name=st.text(),
        lora_rank=st.just(rank),
        num_rocs=st.integers(0, rank),
        weight=st.floats(0, 4),
    )
)
_SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 2**32 - 1),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0.01, 1),
    top_k=st.none() | st.integers(0, 100),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(), max_size=3).map(tuple),
    ignore_eos=st.none() | st.booleans(),
)


class TestRoundTrips:
    @given(_BUDGETS)
    def test_a_budget(self, budget):
        assert wire_decisions.budget_from_wire(wire_decisions.budget_to_wire(budget)) == budget

    @given(_SAMPLING)
    def test_sampling_parameters_with_what_is_left_out(self, sampling):
        assert wire_generation.sampling_from_wire(wire_generation.sampling_to_wire(sampling)) == sampling

    @pytest.mark.parametrize(
        "event",
        [
            GenerationStarted(num_prompt_tokens=4),
            TextDelta(text="é", token_ids=(3, 9)),
            GenerationFinished(
                finish_reason=FinishReason.LENGTH,
                num_prompt_tokens=4,
                num_completion_tokens=5,
                budgets_used=(RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=2, weight=0.5),),
                ttft_seconds=0.25,
                e2e_latency_seconds=0.5,
            ),
        ],
    )
    def test_an_event(self, event):
        assert wire_generation.event_from_wire(wire_generation.event_to_wire(event)) == event


class TestPlan:
    def test_every_field_travels(self):
        plan = RoutingPlan(
            budgets=(RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=2, weight=0.5),),
            gate=GateParameters(score=RocScore.CONTRIBUTION, scope=GateScope.GLOBAL, basis=RocBasis.TRAINED, eta=0.75),
            catalog_generation=12,
        )
        message = wire_decisions.plan_to_wire(plan)
        assert message.catalog_generation == 12
        assert message.gate == routing_pb2.GateParameters(
            score=routing_pb2.ROC_SCORE_CONTRIBUTION,
            scope=routing_pb2.GATE_SCOPE_GLOBAL,
            basis=routing_pb2.ROC_BASIS_TRAINED,
            eta=0.75,
            rule=routing_pb2.GATE_RULE_ROCS,
            temperature=1.0,
        )
        assert message.budgets[0] == routing_pb2.RocBudget(
            adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=2, weight=0.5
        )

    @pytest.mark.parametrize("score", RocScore)
    @pytest.mark.parametrize("scope", GateScope)
    @pytest.mark.parametrize("basis", RocBasis)
    def test_every_rule_has_a_wire_value(self, score, scope, basis):
        gate = wire_decisions.plan_to_wire(RoutingPlan(gate=GateParameters(score=score, scope=scope, basis=basis))).gate
        assert routing_pb2.RocScore.Name(gate.score) == f"ROC_SCORE_{score.name}"
        assert routing_pb2.GateScope.Name(gate.scope) == f"GATE_SCOPE_{scope.name}"
        assert routing_pb2.RocBasis.Name(gate.basis) == f"ROC_BASIS_{basis.name}"

    @pytest.mark.parametrize("rule", GateRule)
    def test_every_gate_rule_has_a_wire_value(self, rule):
        gate_id = "g@1" if rule.is_learned else None
        gate = GateParameters(
            rule=rule, basis=rule.required_basis or RocBasis.SVD, top_k=2, temperature=0.5, gate_id=gate_id
        )
        message = wire_decisions.plan_to_wire(RoutingPlan(gate=gate)).gate
        assert routing_pb2.GateRule.Name(message.rule) == f"GATE_RULE_{rule.name}"
        assert (message.top_k, message.temperature) == (2, 0.5)
        assert message.HasField("gate_id") == rule.is_learned

    def test_every_mode_has_a_wire_value(self):
        assert set(wire_decisions.MODES_FROM_WIRE.values()) == set(RoutingMode)


class TestOrders:
    def test_a_text(self):
        request = GenerationRequest(request_id="r", prompt=TextPrompt(text="x"))
        message = wire_generation.order_to_wire(WorkOrder(request=request, plan=RoutingPlan()))
        assert (message.request_id, message.prompt, message.WhichOneof("input")) == ("r", "x", "prompt")
        assert message.HasField("plan")

    def test_a_conversation(self):
        turns = tuple(ChatMessage(role=role, content=role.value) for role in ChatRole)
        request = GenerationRequest(request_id="r", prompt=ChatPrompt(messages=turns))
        message = wire_generation.order_to_wire(WorkOrder(request=request, plan=RoutingPlan()))
        assert [worker_pb2.ChatRole.Name(turn.role) for turn in message.chat.messages] == [
            f"CHAT_ROLE_{role.name}" for role in ChatRole
        ]


class TestStrangeEvents:
    def test_an_event_of_a_newer_worker_is_said(self):
        with pytest.raises(Unavailable) as raised:
            wire_generation.event_from_wire(worker_pb2.GenerateEvent())
        assert raised.value.code == "incompatible_worker"

    def test_an_abort_that_nobody_asked_for_is_no_answer(self):
        finished = worker_pb2.Finished(finish_reason=worker_pb2.FINISH_REASON_ABORT)
        with pytest.raises(Unavailable) as raised:
            wire_generation.event_from_wire(worker_pb2.GenerateEvent(finished=finished))
        assert raised.value.code == "generation_aborted"
