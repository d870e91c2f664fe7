from __future__ import annotations

import pytest

from hilora.errors import InvalidInput, InvalidSamplingParams
from hilora.routing_plan import RocBudget
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.worker.engine.output.events import Finished, FinishReason, TextDelta
from services.worker.engine.sampling.logprobs import PositionLogprobs, TokenLogprob
from services.worker.engine.sampling.sampling_params import Grammar, GrammarKind, SamplingParams
from services.worker.entrypoints.messages import generate_event, generation_request
from services.worker.lora.gating.gating_counts import AdapterGating, ModuleGating


def _sampling(**fields) -> SamplingParams:
    message = worker_pb2.GenerateRequest(request_id="r", prompt="x", sampling=worker_pb2.SamplingParams(**fields))
    return generation_request(message).sampling


class TestSampling:
    def test_what_is_left_out_takes_the_defaults(self) -> None:
        assert _sampling() == SamplingParams()

    def test_every_field_arrives(self) -> None:
        values = {
            "max_tokens": 9,
            "min_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.25,
            "top_k": 7,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "presence_penalty": -0.5,
            "frequency_penalty": 0.75,
            "seed": 2**64 - 1,
            "n": 3,
            "best_of": 3,
            "include_stop_str_in_output": True,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "logprobs": 0,
            "prompt_logprobs": 20,
        }
        found = _sampling(**values, stop=["a", "b"], stop_token_ids=[4, 5], logit_bias={3: -1.5})
        assert {name: getattr(found, name) for name in values} == values
        assert (found.stop, found.stop_token_ids, found.logit_bias) == (("a", "b"), (4, 5), {3: -1.5})
        # Whoever adds a field to one side is reminded of the other.
        assert set(worker_pb2.SamplingParams.DESCRIPTOR.fields_by_name) == set(SamplingParams.__dataclass_fields__)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, None),
            ({"json_object": False}, None),
            ({"json_object": True}, Grammar(kind=GrammarKind.JSON_OBJECT)),
            ({"json_schema": "{}"}, Grammar(kind=GrammarKind.JSON_SCHEMA, text="{}")),
            ({"regex": "a+"}, Grammar(kind=GrammarKind.REGEX, text="a+")),
            (
                {"choice": worker_pb2.ChoiceGrammar(texts=["a", "b"])},
                Grammar(kind=GrammarKind.CHOICE, choices=("a", "b")),
            ),
        ],
        ids=str,
    )
    def test_grammars(self, fields, expected) -> None:
        assert _sampling(grammar=worker_pb2.Grammar(**fields)).grammar == expected

    @pytest.mark.parametrize(
        "fields", [{"regex": ""}, {"json_schema": ""}, {"choice": worker_pb2.ChoiceGrammar()}], ids=str
    )
    def test_empty_grammars_are_refused(self, fields) -> None:
        with pytest.raises(InvalidSamplingParams):
            _sampling(grammar=worker_pb2.Grammar(**fields))

    def test_priority(self) -> None:
        message = worker_pb2.GenerateRequest(request_id="r", prompt="x", priority=-3)
        assert generation_request(message).priority == -3


class TestEvents:
    def test_a_delta_with_logprobs(self) -> None:
        token = TokenLogprob(token_id=4, logprob=-0.5, token_bytes=b"\xf0")
        position = PositionLogprobs(chosen=token, top=(token, TokenLogprob(token_id=5, logprob=-2.0, token_bytes=b"b")))
        event = TextDelta(text="x", token_ids=(4,), logprobs=(position,), prompt_logprobs=(position,), choice_idx=2)
        delta = generate_event(event).delta
        assert (delta.text, list(delta.token_ids), delta.choice_idx) == ("x", [4], 2)
        for found in (*delta.logprobs, *delta.prompt_logprobs):
            assert (found.chosen.token_id, found.chosen.logprob, found.chosen.token_bytes) == (4, -0.5, b"\xf0")
            assert [top.token_id for top in found.top] == [4, 5]

    @pytest.mark.parametrize(
        ("reason", "field"), [(None, None), ("END", "stop_text"), (7, "stop_token_id"), (0, "stop_token_id")]
    )
    def test_the_end_says_what_stopped_it(self, reason, field) -> None:
        event = Finished(
            finish_reason=FinishReason.STOP,
            stop_reason=reason,
            num_prompt_tokens=3,
            num_completion_tokens=2,
            num_cached_tokens=1,
            budgets_used=(),
            ttft_seconds=0.1,
            e2e_latency_seconds=0.2,
            choice_idx=1,
        )
        finished = generate_event(event).finished
        assert finished.WhichOneof("stop_reason") == field
        assert field is None or getattr(finished, field) == reason
        assert (finished.num_cached_tokens, finished.choice_idx) == (1, 1)


class TestGating:
    def test_it_is_asked_for_and_told(self) -> None:
        assert not generation_request(worker_pb2.GenerateRequest(request_id="r", prompt="x")).explains_gating
        asked = worker_pb2.GenerateRequest(request_id="r", prompt="x", explains_gating=True)
        assert generation_request(asked).explains_gating
        event = Finished(
            finish_reason=FinishReason.STOP,
            num_prompt_tokens=3,
            num_completion_tokens=2,
            budgets_used=(),
            ttft_seconds=0.1,
            e2e_latency_seconds=0.2,
            gating=(
                ModuleGating(module_path="m", adapters=(AdapterGating(adapter_id="a@1", num_tokens_fired=(4, 0)),)),
            ),
            num_gated_tokens=4,
        )
        finished = generate_event(event).finished
        assert finished.num_gated_tokens == 4
        (module,) = finished.gating
        assert module.module_path == "m"
        assert [(one.adapter_id, list(one.num_tokens_fired)) for one in module.adapters] == [("a@1", [4, 0])]


class TestPhases:
    def _plan(self, *, rule: int = routing_pb2.GATE_RULE_ROCS, **fields) -> routing_pb2.RoutingPlan:
        return routing_pb2.RoutingPlan(
            budgets=[routing_pb2.RocBudget(adapter_id="a@1", lora_rank=4, num_rocs=2, weight=0.5, **fields)],
            gate=routing_pb2.GateParameters(
                score=routing_pb2.ROC_SCORE_ACTIVATION,
                scope=routing_pb2.GATE_SCOPE_GLOBAL,
                basis=routing_pb2.ROC_BASIS_SVD,
                eta=1.0,
                rule=rule,
            ),
        )

    @pytest.mark.parametrize("fields", [{}, {"reading_weight": 0.0}, {"reading_weight": -0.25}])
    def test_a_reading_weight_arrives_where_there_is_one(self, fields) -> None:
        message = worker_pb2.GenerateRequest(request_id="r", prompt="x", plan=self._plan(**fields))
        (budget,) = generation_request(message).plan.budgets
        assert budget.reading_weight == fields.get("reading_weight")

    def test_it_goes_back_with_the_budgets_that_were_used(self) -> None:
        budgets = [
            RocBudget(adapter_id=name, adapter_name=name, lora_rank=4, num_rocs=2, reading_weight=weight)
            for name, weight in (("a@1", 0.5), ("b@1", None))
        ]
        event = Finished(
            finish_reason=FinishReason.STOP,
            num_prompt_tokens=3,
            num_completion_tokens=2,
            budgets_used=tuple(budgets),
            ttft_seconds=0.1,
            e2e_latency_seconds=0.2,
        )
        one, other = generate_event(event).finished.budgets_used
        assert one.reading_weight == 0.5
        assert not other.HasField("reading_weight")

    def test_a_rule_that_weighs_adapters_itself_is_refused(self) -> None:
        plan = self._plan(rule=routing_pb2.GATE_RULE_ARROW, reading_weight=0.5)
        with pytest.raises(InvalidInput) as caught:
            generation_request(worker_pb2.GenerateRequest(request_id="r", prompt="x", plan=plan))
        assert caught.value.code == "invalid_plan"
