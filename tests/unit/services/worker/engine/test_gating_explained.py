"""What a request is told of the ROCs that acted, against the definition in loops over the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.errors import InvalidInput
from hilora.reference import reference_forward, reference_kept
from hilora.reference_adaptive import reference_adaptive_update, reference_alphas
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocBudget, RocScore, RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import Finished, FinishReason
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.gates import ADAPTIVE_RULES, InMemoryGateSource, in_svd_basis, make_adaptive_plan, make_gate
from tests.builders.logits import random_prompt
from tests.builders.models import linear_shapes, load_tiny, make_adapter, make_model
from tests.builders.seq2seq import load_tiny_seq2seq

_RANKS = {"a": 3, "b": 4}
_SUFFIXES = ("_proj", "lm_head", "embed_tokens")
_PROMPT = random_prompt(19, 5)

Counts = dict[str, dict[str, list[int]]]
"""By module path and adapter."""


def _adapters(architecture: str, suffixes: tuple[str, ...]) -> dict[str, DecomposedAdapter]:
    shapes = linear_shapes(make_model(architecture), suffixes=suffixes)
    # The second one leaves half of the layers alone, and has fewer components in some of the others.
    half = dict(list(shapes.items())[::2])
    return {
        "a": make_adapter(shapes, rank=_RANKS["a"], seed=1, scale=0.15),
        "b": make_adapter(half, rank={**dict.fromkeys((path.rpartition(".")[2] for path in half), 4), "q_proj": 2}),
    }


def _svd(adapters: Mapping[str, DecomposedAdapter]) -> InMemoryComponentSource:
    return InMemoryComponentSource({name: in_svd_basis(adapter) for name, adapter in adapters.items()})


def _told(finished: Finished) -> Counts:
    return {
        module.module_path: {adapter.adapter_id: list(adapter.num_tokens_fired) for adapter in module.adapters}
        for module in finished.gating
    }


def _expected(
    architecture: str,
    plan: RoutingPlan,
    adapters: Mapping[str, DecomposedAdapter],
    recorder: Recorder,
    learned: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Counts:
    """One pass over all that the model has read, each layer token by token and component by component."""
    model = make_model(architecture, dtype=dtype).double()
    counts: Counts = defaultdict(dict)
    paths = {path for adapter in adapters.values() for path in adapter.modules}
    for path in paths:
        there = {
            budget: _in_float64(adapters[budget.adapter_id].modules[path])
            for budget in plan.budgets
            if path in adapters[budget.adapter_id].modules
        }
        for budget, rocs in there.items():
            counts[path][budget.adapter_id] = [0] * rocs.num_rocs
        tensors = None if learned is None else learned[path]
        hook = partial(_count_and_add, plan=plan, there=there, learned=tensors, counts=counts[path])
        first_row = len(_PROMPT) - 1 if path == "lm_head" else 0
        model.get_submodule(path).register_forward_hook(partial(hook, first_row=first_row))
    with torch.inference_mode():
        model(input_ids=torch.tensor([_PROMPT + recorder.token_ids[:-1]]))
    return dict(counts)


def _in_float64(rocs: RankOneComponents) -> RankOneComponents:
    return RankOneComponents(a_RD=rocs.a_RD.double(), b_RO=rocs.b_RO.double())


def _count_and_add(
    module: Any,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
    *,
    plan: RoutingPlan,
    there: Mapping[RocBudget, RankOneComponents],
    learned: Any,
    counts: dict[str, list[int]],
    first_row: int,
) -> torch.Tensor:
    candidates, weights = list(there.values()), [budget.weight for budget in there]
    names = [budget.adapter_id for budget in there]
    x = inputs[0].flatten() if inputs[0].dtype is torch.int64 else inputs[0].reshape(-1, inputs[0].shape[-1])
    x_TD = torch.nn.functional.one_hot(x, candidates[0].a_RD.shape[1]).double() if x.ndim == 1 else x
    budgets = [budget.num_rocs_in(rocs.num_rocs) for budget, rocs in there.items()]
    common: dict[str, Any] = {"candidates": candidates, "weights": weights, "gate": plan.gate}
    for x_D in x_TD[first_row:]:
        if plan.gate.rule is GateRule.ROCS:
            for candidate_idx, roc_idx in reference_kept(x_D, budgets=budgets, **common):
                counts[names[candidate_idx]][roc_idx] += 1
            continue
        alphas = reference_alphas(x_D, candidates=candidates, adapter_ids=names, gate=plan.gate, learned=learned)
        for name, alpha in zip(names, alphas, strict=True):
            counts[name] = [count + (alpha > 0) for count in counts[name]]
    if plan.gate.rule is GateRule.ROCS:
        zero_OD = torch.zeros(output.shape[-1], x_TD.shape[1], dtype=x_TD.dtype)
        y_TO = reference_forward(x_TD, w0_OD=zero_OD, bias_O=None, budgets=budgets, **common)
    else:
        y_TO = reference_adaptive_update(x_TD, adapter_ids=names, learned=learned, **common)
    return output + y_TO.view_as(output)


def _explained(engine: Engine, plan: RoutingPlan | None, **sampling: Any) -> Recorder:
    recorder = submit(engine, "r", _PROMPT, plan=plan, explains_gating=True, **sampling)
    run_until_done(engine, recorder)
    engine.check_integrity()
    return recorder


class TestCounts:
    @pytest.mark.parametrize("max_num_batched_tokens", [12, 64])
    @pytest.mark.parametrize(
        ("scope", "score"),
        [
            (GateScope.PER_ADAPTER, RocScore.ACTIVATION),
            (GateScope.PER_ADAPTER, RocScore.CONTRIBUTION),
            (GateScope.GLOBAL, RocScore.CONTRIBUTION),
        ],
    )
    def test_they_are_the_definitions_module_by_module(self, scope, score, max_num_batched_tokens) -> None:
        adapters = _adapters("llama", _SUFFIXES)
        plan = make_plan(("a", 3, 1, 0.7), ("b", 4, 2, 0.5), scope=scope, score=score)
        engine = make_engine(
            load_tiny(dtype=torch.float64),
            InMemoryComponentSource(adapters),
            max_num_batched_tokens=max_num_batched_tokens,
        )
        recorder = _explained(engine, plan)
        finished = recorder.finished
        assert finished.num_gated_tokens == len(_PROMPT) + len(recorder.token_ids) - 1
        assert _told(finished) == _expected("llama", plan, adapters, recorder)

    @pytest.mark.parametrize("architecture", ["gemma2", "qwen3"])
    def test_windows_caps_and_single_precision_change_nothing(self, architecture) -> None:
        adapters = _adapters(architecture, ("_proj",))
        plan = make_plan(("a", 3, 2, 0.7), ("b", 4, 1, 0.5))
        engine = make_engine(load_tiny(architecture), InMemoryComponentSource(adapters))
        recorder = _explained(engine, plan)
        told = _told(recorder.finished)
        expected = _expected(architecture, plan, adapters, recorder, dtype=torch.float32)
        assert told.keys() == expected.keys()
        for path, by_adapter in expected.items():
            for name, counts in by_adapter.items():
                # A tie that rounding decides may fall the other way.
                assert max(abs(one - other) for one, other in zip(told[path][name], counts, strict=True)) <= 1

    @pytest.mark.parametrize("rule", [rule for rule in ADAPTIVE_RULES if rule is not GateRule.SMORA])
    def test_tokens_that_choose_adapters_count_those_they_chose(self, rule) -> None:
        raw = _adapters("llama", ("_proj",))
        source = _svd(raw)
        adapters = dict(source.adapters)
        shapes = linear_shapes(make_model())
        ranks = {name: {path: rocs.num_rocs for path, rocs in one.modules.items()} for name, one in adapters.items()}
        learned = make_gate(rule, ranks=ranks, shapes=shapes) if rule.is_learned else None
        gate_source = None if learned is None else InMemoryGateSource({f"{rule.value}-gate@1": learned})
        plan = make_adaptive_plan(rule, [("a", 3, 0.8), ("b", 4, 0.6)], top_k=0 if rule is GateRule.SEQR else 1)
        engine = make_engine(load_tiny(dtype=torch.float64), source, gate_source=gate_source)
        recorder = _explained(engine, plan)
        modules = None if learned is None else learned.modules
        assert _told(recorder.finished) == _expected("llama", plan, adapters, recorder, modules)

    def test_under_smora_each_token_keeps_as_many_components_as_the_plan_says(self) -> None:
        adapters = _adapters("llama", ("_proj",))
        ranks = {name: {path: rocs.num_rocs for path, rocs in one.modules.items()} for name, one in adapters.items()}
        gate = make_gate(GateRule.SMORA, ranks=ranks, shapes=linear_shapes(make_model()))
        plan = make_adaptive_plan(GateRule.SMORA, [("a", 3, 0.8), ("b", 4, 0.6)], top_k=2)
        engine = make_engine(
            load_tiny(dtype=torch.float64),
            InMemoryComponentSource(adapters),
            gate_source=InMemoryGateSource({"smora-gate@1": gate}),
        )
        finished = _explained(engine, plan).finished
        for by_adapter in _told(finished).values():
            counts = [count for of_adapter in by_adapter.values() for count in of_adapter]
            assert sum(counts) == 2 * finished.num_gated_tokens
            assert len({*counts}) > 1

    def test_with_full_budgets_every_component_acts_at_every_token(self) -> None:
        adapters = _adapters("llama", _SUFFIXES)
        engine = make_engine(load_tiny(), InMemoryComponentSource(adapters))
        finished = _explained(engine, make_plan(("a", 3, 3, 0.7), ("b", 4, 4, 0.5))).finished
        told = _told(finished)
        assert told.keys() == adapters["a"].modules.keys()
        for path, by_adapter in told.items():
            num_tokens = finished.num_completion_tokens if path == "lm_head" else finished.num_gated_tokens
            for name, counts in by_adapter.items():
                assert counts == [num_tokens] * adapters[name].modules[path].num_rocs

    def test_experts_count_the_tokens_that_chose_them(self) -> None:
        adapters = {"a": make_adapter(linear_shapes(make_model("mixtral"), suffixes=("down_proj",)), rank=2)}
        engine = make_engine(load_tiny("mixtral"), InMemoryComponentSource(adapters), max_num_batched_tokens=13)
        finished = _explained(engine, make_plan(("a", 2, 2, 1.0))).finished
        by_layer: dict[str, int] = defaultdict(int)
        for path, by_adapter in _told(finished).items():
            by_layer[path.partition(".experts.")[0]] += by_adapter["a"][0]
        # Each token chooses two of four.
        assert list(by_layer.values()) == [2 * finished.num_gated_tokens] * 2

    def test_an_adapter_without_a_budget_is_left_out(self) -> None:
        engine = make_engine(load_tiny(), InMemoryComponentSource(_adapters("llama", ("_proj",))))
        finished = _explained(engine, make_plan(("a", 3, 0, 0.7), ("b", 4, 2, 0.5))).finished
        assert {name for by_adapter in _told(finished).values() for name in by_adapter} == {"b"}

    def test_the_base_alone_has_nothing_to_tell(self) -> None:
        engine = make_engine(load_tiny())
        finished = _explained(engine, None).finished
        assert finished.gating == ()
        assert finished.num_gated_tokens == len(_PROMPT) + 7
        assert not engine.run_step()


class TestOtherRequests:
    def test_they_go_on_between_the_chunks_and_answer_the_same(self) -> None:
        adapters = _adapters("llama", ("_proj",))
        plan = make_plan(("a", 3, 2, 0.7), ("b", 4, 1, 0.5))

        def answers(*, explains: bool) -> tuple[list[int], list[int], Engine, Recorder]:
            source = InMemoryComponentSource(adapters)
            engine = make_engine(load_tiny(dtype=torch.float64), source, max_num_batched_tokens=12)
            one = submit(engine, "one", _PROMPT, plan=plan, max_tokens=4, explains_gating=explains)
            other = submit(engine, "other", random_prompt(9), plan=plan, max_tokens=30)
            while not one.done.is_set():
                before, is_read_again = len(other.token_ids), len(one.token_ids) == 4
                engine.run_step()
                assert not is_read_again or len(other.token_ids) == before + 1
                # Its place is free again by then.
                assert not is_read_again or engine.stats().num_running == 1
                engine.check_integrity()
            run_until_done(engine, other)
            return one.token_ids, other.token_ids, engine, one

        explained, plain = answers(explains=True), answers(explains=False)
        assert explained[:2] == plain[:2]
        assert explained[3].finished.gating
        assert plain[3].finished.gating == ()
        assert plain[2].stats().counters.num_steps == explained[2].stats().counters.num_steps

    def test_an_answer_that_is_explained_stays_in_the_prefix_cache(self) -> None:
        source = InMemoryComponentSource(_adapters("llama", ("_proj",)))
        engine = make_engine(load_tiny(dtype=torch.float64), source, enable_prefix_cache=True)
        plan = make_plan(("a", 3, 2, 0.7))
        first = _told(_explained(engine, plan).finished)
        again = _explained(engine, plan).finished
        assert again.num_cached_tokens == len(_PROMPT) - 1
        assert _told(again) == first


class TestEnds:
    def test_an_abort_ends_the_explanation(self) -> None:
        engine = make_engine(
            load_tiny(), InMemoryComponentSource(_adapters("llama", ("_proj",))), max_num_batched_tokens=12
        )
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a", 3, 2, 0.7)), explains_gating=True)
        while len(recorder.token_ids) < 8:
            engine.run_step()
        assert not recorder.done.is_set()
        assert engine.abort("r")
        run_until_done(engine, recorder)
        assert recorder.finished.finish_reason is FinishReason.ABORT
        assert recorder.finished.gating == ()
        engine.check_integrity()
        assert not engine.run_step()
        assert _explained(engine, make_plan(("a", 3, 2, 0.7))).finished.gating

    def test_a_fault_in_the_second_reading_ends_that_request_alone(self) -> None:
        engine = make_engine(load_tiny(), InMemoryComponentSource(_adapters("llama", ("_proj",))))
        plan = make_plan(("a", 3, 2, 0.7))
        recorder = submit(engine, "r", _PROMPT, plan=plan, explains_gating=True)
        while len(recorder.token_ids) < 7:
            engine.run_step()
        other = submit(engine, "other", _PROMPT, plan=plan)
        counter = engine._explanations._make_pass

        def broken(*args: Any, **kwargs: Any) -> Any:
            reading = counter(*args, **kwargs)
            reading._forward = lambda **_: 1 / 0
            return reading

        engine._explanations._make_pass = broken
        run_until_done(engine, recorder, other)
        assert recorder.error.code == "generation_failed"
        assert other.finished.num_completion_tokens == 8
        engine.check_integrity()

    def test_components_stay_until_the_explanation_is_told(self) -> None:
        adapters = _adapters("llama", ("_proj",))
        engine = make_engine(load_tiny(), InMemoryComponentSource(adapters), max_num_batched_tokens=12)
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a", 3, 2, 0.7)), explains_gating=True)
        while len(recorder.token_ids) < 8:
            engine.run_step()
        engine.retire("a")
        assert engine.stats().resident_adapter_ids == ("a",)
        run_until_done(engine, recorder)
        assert recorder.finished.gating
        assert engine.stats().resident_adapter_ids == ()


class TestRefusals:
    def _refused(self, engine: Engine, **options: Any) -> InvalidInput:
        with pytest.raises(InvalidInput) as caught:
            submit(engine, "r", _PROMPT, plan=make_plan(("a", 3, 2, 0.7)), explains_gating=True, **options)
        engine.check_integrity()
        return caught.value

    def test_too_many_tokens(self) -> None:
        engine = make_engine(load_tiny(), max_explained_tokens=len(_PROMPT) + 8)
        assert self._refused(engine, max_tokens=9).code == "explanation_too_long"
        source = InMemoryComponentSource(_adapters("llama", ("_proj",)))
        engine = make_engine(load_tiny(), source, max_explained_tokens=len(_PROMPT) + 8)
        assert _explained(engine, make_plan(("a", 3, 2, 0.7)), max_tokens=8).finished.gating

    def test_an_encoder(self) -> None:
        engine = make_engine(load_tiny_seq2seq())
        assert self._refused(engine).code == "explanation_unsupported"
        run_until_done(engine, submit(engine, "base", _PROMPT, explains_gating=True))


def test_the_parameters_of_a_basis_reach_the_counter() -> None:
    """Counts follow the order of the basis that the plan names."""
    adapters = _adapters("llama", ("q_proj",))
    plan = RoutingPlan(budgets=make_plan(("a", 3, 1, 1.0)).budgets, gate=GateParameters(basis=RocBasis.SVD))
    source = _svd(adapters)
    engine = make_engine(load_tiny(dtype=torch.float64), source)
    recorder = _explained(engine, plan)
    assert _told(recorder.finished) == _expected("llama", plan, source.adapters, recorder)
