"""Requests of every gate rule in one engine: each as alone, and as its definition in loops over the whole model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import Exhausted, HiloraError
from hilora.learned_gate import LearnedGate
from hilora.reference import reference_forward
from hilora.reference_adaptive import reference_adaptive_update
from hilora.routing_plan import GateParameters, GateRule, RocBudget, RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import Failed
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import Recorder, make_engine, run_until_done, submit
from tests.builders.gates import (
    ADAPTIVE_RULES,
    InMemoryGateSource,
    in_svd_basis,
    make_adaptive_plan,
    make_gate,
    make_gate_parameters,
)
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import apply_dense, linear_shapes, load_tiny, make_adapter, make_model
from tests.builders.seq2seq import load_tiny_seq2seq, make_seq2seq

_RANKS = {"a": 3, "b": 2, "c": 4}


class BothBases(InMemoryComponentSource):
    """Adapters in the basis that is asked for, in float64."""

    def __init__(self, adapters: dict[str, DecomposedAdapter]) -> None:
        super().__init__(adapters)
        self._singular = {adapter_id: in_svd_basis(adapter) for adapter_id, adapter in adapters.items()}

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        adapter = super().fetch(adapter_id, basis)
        return self._singular[adapter_id] if basis is RocBasis.SVD else adapter


@cache
def _adapters(architecture: str) -> dict[str, DecomposedAdapter]:
    shapes = linear_shapes(make_model(architecture))
    # The last one leaves half of the layers alone.
    return {
        name: make_adapter(shapes if name != "c" else dict(list(shapes.items())[::2]), rank=rank, seed=idx, scale=0.15)
        for idx, (name, rank) in enumerate(_RANKS.items())
    }


@cache
def _gates(architecture: str) -> dict[str, LearnedGate]:
    shapes = linear_shapes(make_model(architecture))
    ranks = {
        name: {path: rocs.num_rocs for path, rocs in adapter.modules.items()}
        for name, adapter in _adapters(architecture).items()
    }
    learned = [rule for rule in GateRule if rule.is_learned]
    return {
        make_gate_parameters(rule).gate_id or "": make_gate(rule, ranks=ranks, shapes=shapes, seed=idx)
        for idx, rule in enumerate(learned)
    }


def _engine(architecture: str, **config: Any) -> Engine:
    return make_engine(
        load_tiny(architecture, dtype=torch.float64),
        BothBases(_adapters(architecture)),
        gate_source=InMemoryGateSource(_gates(architecture)),
        **config,
    )


def _gate_bytes(architecture: str) -> list[int]:
    """What each learned gate takes on the device."""
    gates = _engine(architecture)._runner.gates
    totals = [0]
    for rule in (rule for rule in GateRule if rule.is_learned):
        gates.load(_plan(rule))
        totals.append(gates.used_bytes)
    return [after - before for before, after in pairwise(totals)]


def _plan(rule: GateRule, names: str = "abc", **changes: Any) -> RoutingPlan:
    adapters = [(name, _RANKS[name], 0.4 + _RANKS[name] / 8) for name in names]
    if rule is GateRule.ROCS:
        budgets = tuple(
            RocBudget(adapter_id=name, adapter_name=name, lora_rank=rank, num_rocs=rank // 2, weight=weight)
            for name, rank, weight in adapters
        )
        return RoutingPlan(budgets=budgets, gate=GateParameters(basis=RocBasis.SVD))
    return make_adaptive_plan(rule, adapters, **changes)


def _reference_logits(architecture: str, plan: RoutingPlan, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The whole sequence at once, each layer's update by its definition."""
    model = make_model(architecture, dtype=torch.float64)
    source = BothBases(_adapters(architecture))
    adapters = {budget: source.fetch(budget.adapter_id, plan.gate.basis).modules for budget in plan.budgets}
    learned = None if plan.gate.gate_id is None else _gates(architecture)[plan.gate.gate_id].modules
    for path in linear_shapes(model):
        there = {budget: modules[path] for budget, modules in adapters.items() if path in modules}
        if there:
            tensors = None if learned is None else learned[path]
            hook = partial(_with_update, plan=plan, there=there, learned=tensors)
            model.get_submodule(path).register_forward_hook(hook)
    return full_forward_logits(model, prompt, completion)


def _with_update(
    module: Any,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
    *,
    plan: RoutingPlan,
    there: Mapping[RocBudget, Any],
    learned: Any,
) -> torch.Tensor:
    x_TD = inputs[0].reshape(-1, inputs[0].shape[-1])
    candidates = [type(rocs)(a_RD=rocs.a_RD.double(), b_RO=rocs.b_RO.double()) for rocs in there.values()]
    weights = [budget.weight for budget in there]
    if plan.gate.rule is GateRule.ROCS:
        budgets = [budget.num_rocs_in(rocs.num_rocs) for budget, rocs in there.items()]
        y_TO = reference_forward(
            x_TD,
            w0_OD=torch.zeros(output.shape[-1], x_TD.shape[1], dtype=x_TD.dtype),
            bias_O=None,
            candidates=candidates,
            budgets=budgets,
            weights=weights,
            gate=plan.gate,
        )
    else:
        y_TO = reference_adaptive_update(
            x_TD,
            candidates=candidates,
            adapter_ids=[budget.adapter_id for budget in there],
            weights=weights,
            gate=plan.gate,
            learned=learned,
        )
    return output + y_TO.view_as(output)


class TestMixedBatches:
    @pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
    def test_every_rule_equals_its_definition_and_itself_alone(self, architecture) -> None:
        engine = _engine(architecture, max_num_batched_tokens=16)
        recorder = LogitRecorder(engine)
        plans = {rule.value: _plan(rule, top_k=2, temperature=0.8) for rule in ADAPTIVE_RULES}
        plans |= {"rocs": _plan(GateRule.ROCS), "arrow-too": plans["arrow"], "base": RoutingPlan()}
        prompts = {name: random_prompt(7 + 2 * idx, idx) for idx, name in enumerate(plans)}
        done = run_prompts(engine, prompts, plans, max_tokens=4)
        for name, plan in plans.items():
            expected = _reference_logits(architecture, plan, prompts[name], done[name].token_ids)
            assert_close(recorder.of(name), expected)
            alone = _engine(architecture)
            alone_recorder = LogitRecorder(alone)
            run_prompts(alone, {name: prompts[name]}, {name: plan}, max_tokens=4)
            assert_close(alone_recorder.of(name), recorder.of(name))

    @pytest.mark.parametrize("rule", [rule for rule in ADAPTIVE_RULES if rule is not GateRule.SMORA])
    def test_one_adapter_on_the_linear_layers_of_experts_is_that_adapter(self, rule) -> None:
        engine = _engine("mixtral", max_num_batched_tokens=13)
        recorder = LogitRecorder(engine)
        prompt, plan = random_prompt(20), make_adaptive_plan(rule, [("a", _RANKS["a"], 1.0)])
        done = run_prompts(engine, {"r": prompt, "base": prompt}, {"r": plan}, max_tokens=3)
        reference = make_model("mixtral", dtype=torch.float64)
        apply_dense(reference, [(_adapters("mixtral")["a"], 1.0)])
        assert_close(recorder.of("r"), full_forward_logits(reference, prompt, done["r"].token_ids))


class TestEncoderDecoder:
    def test_every_rule_equals_itself_alone(self) -> None:
        shapes = linear_shapes(make_seq2seq(), suffixes=(".q", ".k", ".v", ".o", ".wi_0", ".wi_1", ".wo"))
        adapters = {
            name: make_adapter(shapes, rank=rank, seed=idx, scale=0.15)
            for idx, (name, rank) in enumerate(_RANKS.items())
        }
        ranks = {name: dict.fromkeys(shapes, rank) for name, rank in _RANKS.items()}
        gates = {
            _plan(rule).gate.gate_id or "": make_gate(rule, ranks=ranks, shapes=shapes)
            for rule in GateRule
            if rule.is_learned
        }

        def engine() -> Engine:
            source = InMemoryGateSource(gates)
            return make_engine(load_tiny_seq2seq(), BothBases(adapters), gate_source=source, max_num_batched_tokens=16)

        plans = {rule.value: _plan(rule, top_k=2) for rule in ADAPTIVE_RULES} | {"base": RoutingPlan()}
        prompts = {name: random_prompt(5 + 2 * idx, idx) for idx, name in enumerate(plans)}
        together, alone = engine(), engine()
        recorder, alone_recorder = LogitRecorder(together), LogitRecorder(alone)
        run_prompts(together, prompts, plans, max_tokens=4)
        for name, plan in plans.items():
            run_prompts(alone, {name: prompts[name]}, {name: plan}, max_tokens=4)
            assert_close(recorder.of(name), alone_recorder.of(name))
            base = engine()
            base_recorder = LogitRecorder(base)
            run_prompts(base, {name: prompts[name]}, {}, max_tokens=1)
            assert torch.allclose(base_recorder.of(name)[0], recorder.of(name)[0]) == plan.is_base_only


class TestGatesOfRequests:
    def test_a_gate_is_held_from_the_submission_to_the_end(self) -> None:
        engine = _engine("llama")
        gates = engine._runner.gates
        plan = _plan(GateRule.RAMOLE)
        done = submit(engine, "r", random_prompt(5), plan=plan)
        gates.check_integrity([plan])
        run_until_done(engine, done)
        gates.check_integrity([])
        engine.check_integrity()

    def test_an_aborted_request_gives_its_gate_back(self) -> None:
        engine = _engine("llama")
        running, waiting = (submit(engine, name, random_prompt(5), plan=_plan(GateRule.SMORA)) for name in "rw")
        engine.run_step()
        engine.abort("r")
        engine.abort("w")
        run_until_done(engine, running, waiting)
        engine._runner.gates.check_integrity([])

    @pytest.mark.parametrize("gate_id", ["no-such-gate@1", "ramole-gate@1"])
    def test_a_refused_request_leaves_nothing_behind(self, gate_id) -> None:
        engine = _engine("llama")
        plan = _plan(GateRule.PHATGOOSE, gate_id=gate_id)
        with pytest.raises(HiloraError) as caught:
            submit(engine, "r", random_prompt(5), plan=plan)
        assert caught.value.code in {"unknown_gate", "gate_rule_mismatch"}
        engine.check_integrity()
        submit(engine, "r", random_prompt(5), plan=_plan(GateRule.PHATGOOSE))
        with pytest.raises(HiloraError) as caught:
            submit(engine, "r", random_prompt(5), plan=_plan(GateRule.PHATGOOSE))
        assert caught.value.code == "duplicate_request_id"
        engine.check_integrity()

    def test_a_gate_that_does_not_fit_its_adapter_ends_that_request_alone(self) -> None:
        gate = make_gate(
            GateRule.SMORA,
            ranks={"a": dict.fromkeys(linear_shapes(make_model()), 2)},
            shapes=linear_shapes(make_model()),
        )
        engine = make_engine(
            load_tiny(), BothBases(_adapters("llama")), gate_source=InMemoryGateSource({"odd@1": gate})
        )
        adapters = [("a", 3, 1.0)]
        odd = submit(
            engine, "odd", random_prompt(5), plan=make_adaptive_plan(GateRule.SMORA, adapters, gate_id="odd@1")
        )
        sound = submit(engine, "base", random_prompt(6))
        run_until_done(engine, odd, sound)
        assert odd.error.code == "gate_shape_mismatch"
        assert not isinstance(sound.events[-1], Failed)
        engine.check_integrity()


class TestRandomWalk:
    @pytest.mark.parametrize("seed", range(2))
    def test_books_are_right_after_every_step_while_gates_come_and_go(self, seed) -> None:
        rng = random.Random(seed)
        # Room for the largest of the three learned gates, and for some of the adapters' six forms.
        room = {"gate_bytes": max(_gate_bytes("llama")), "roc_pool_bytes": 90_000}
        engine = _engine("llama", max_num_seqs=3, max_num_batched_tokens=9, **room)
        recorders: dict[str, Recorder] = {}
        codes: set[str] = set()
        for step in range(150):
            if rng.random() < 0.4:
                names = "".join(rng.sample("abc", rng.randint(1, 3)))
                plan = _plan(rng.choice(list(GateRule)), names)
                try:
                    recorders[f"r{step}"] = submit(
                        engine, f"r{step}", random_prompt(rng.randint(1, 20)), plan=plan, max_tokens=rng.randint(1, 6)
                    )
                except Exhausted as error:
                    codes.add(error.code)
            elif rng.random() < 0.1 and recorders:
                engine.abort(rng.choice(list(recorders)))
            engine.run_step()
            engine.check_integrity()
        run_until_done(engine, *recorders.values(), max_steps=3000)
        engine.check_integrity()
        assert {recorder.num_terminal for recorder in recorders.values()} == {1}
        assert not any(isinstance(recorder.events[-1], Failed) for recorder in recorders.values())
        assert "gate_memory_full" in codes
        assert engine._runner.gates.num_evictions > 0
        engine.stop(drain_seconds=0)
