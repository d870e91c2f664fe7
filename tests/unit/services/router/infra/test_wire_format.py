from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.errors import Unavailable
from hilora.routing_plan import (
    GateParameters,
    GateRule,
    GateScope,
    PlanPreparation,
    PreparationMethod,
    RocBudget,
    RocScore,
    RoutingMode,
    RoutingPlan,
)
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.router.answer import (
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    PositionLogprobs,
    TextDelta,
    TokenLogprob,
)
from services.router.infra import wire_decisions, wire_generation
from services.router.request import (
    ChatMessage,
    ChatPrompt,
    ChatRole,
    GenerationRequest,
    Grammar,
    GrammarKind,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolCall,
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
    min_tokens=st.none() | st.integers(0, 100),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.none() | st.floats(0.01, 100),
    presence_penalty=st.none() | st.floats(-2, 2),
    frequency_penalty=st.none() | st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(-100, 100), max_size=3),
    n=st.none() | st.integers(1, 32),
    stop_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
    include_stop_str_in_output=st.none() | st.booleans(),
    skip_special_tokens=st.none() | st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    grammar=st.none()
    | st.builds(Grammar, kind=st.sampled_from([GrammarKind.JSON_SCHEMA, GrammarKind.REGEX]), text=st.text())
    | st.just(Grammar(kind=GrammarKind.JSON_OBJECT))
    | st.builds(Grammar, kind=st.just(GrammarKind.CHOICE), choices=st.lists(st.text(), max_size=3).map(tuple)),
)
_POSITION = PositionLogprobs(
    chosen=TokenLogprob(token_id=3, logprob=-0.5, token_bytes=b"\xc3"),
    top=(TokenLogprob(token_id=4, logprob=-1.5, token_bytes=b"a"),),
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
            TextDelta(
                text="a", token_ids=(3,), choice_idx=2, logprobs=(_POSITION,), prompt_logprobs=(_POSITION, _POSITION)
            ),
            GenerationFinished(
                finish_reason=FinishReason.LENGTH,
                num_prompt_tokens=4,
                num_completion_tokens=5,
                budgets_used=(RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=2, weight=0.5),),
                ttft_seconds=0.25,
                e2e_latency_seconds=0.5,
            ),
            *(
                GenerationFinished(
                    finish_reason=FinishReason.STOP,
                    num_prompt_tokens=4,
                    num_completion_tokens=5,
                    num_cached_tokens=3,
                    choice_idx=1,
                    stop_reason=reason,
                    budgets_used=(),
                    ttft_seconds=0.25,
                    e2e_latency_seconds=0.5,
                )
                for reason in ("END", 7, 0)
            ),
        ],
    )
    def test_an_event(self, event):
        assert wire_generation.event_from_wire(wire_generation.event_to_wire(event)) == event


class TestPlan:
    @pytest.mark.parametrize("method", list(PreparationMethod))
    def test_what_is_done_first_travels_to_the_worker(self, method):
        num_kept = 0 if method is PreparationMethod.FUSION else 3
        plan = RoutingPlan(preparation=PlanPreparation(method=method, num_kept=num_kept))
        message = wire_decisions.plan_to_wire(plan)
        assert routing_pb2.PreparationMethod.Name(message.preparation.method) == f"PREPARATION_METHOD_{method.name}"
        assert message.preparation.num_kept == num_kept
        assert not wire_decisions.plan_to_wire(RoutingPlan()).HasField("preparation")

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

    @pytest.mark.parametrize("reading_weight", [None, 0.0, -0.5, 1.0])
    def test_the_reading_weight_travels_where_there_is_one(self, reading_weight):
        budget = RocBudget(
            adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=2, weight=0.5, reading_weight=reading_weight
        )
        message = wire_decisions.plan_to_wire(RoutingPlan(budgets=(budget,))).budgets[0]
        assert message.HasField("reading_weight") is (reading_weight is not None)
        assert wire_decisions.budget_from_wire(message) == budget

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

    def test_token_ids(self):
        request = GenerationRequest(request_id="r", prompt=TokenPrompt(token_ids=(5, 6), text="five six"), priority=-2)
        message = wire_generation.order_to_wire(WorkOrder(request=request, plan=RoutingPlan()))
        assert (list(message.tokens.token_ids), message.priority) == ([5, 6], -2)

    def test_turns_with_calls_and_results_come_back_as_they_went(self):
        call = ToolCall(call_id="c1", name="add", arguments='{"a": 1}')
        turns = (
            ChatMessage(role=ChatRole.ASSISTANT, content="", tool_calls=(call,)),
            ChatMessage(role=ChatRole.TOOL, content="2", tool_call_id="c1", name="add"),
        )
        message = wire_generation.chat_to_wire(ChatPrompt(messages=turns, tools="[]", continues_final_message=True))
        assert tuple(map(wire_generation.message_from_wire, message.messages)) == turns
        assert (message.tools, message.continues_final_message) == ("[]", True)

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
