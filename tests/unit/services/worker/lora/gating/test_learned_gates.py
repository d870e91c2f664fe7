from __future__ import annotations

import threading

import pytest
import torch

from hilora.errors import Exhausted, InvalidInput, UnknownAdapter
from hilora.routing_plan import GateRule, RoutingPlan
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.roc_arena import ModuleShape
from tests.builders.gates import InMemoryGateSource, make_adaptive_plan, make_gate, make_gate_parameters

_SHAPES = {"q": (5, 4), "up": (5, 6)}
_RANKS = {"a": {"q": 2, "up": 2}, "b": {"q": 1}}
_LEARNED = [rule for rule in GateRule if rule.is_learned]


def _source(*names: str, rule: GateRule = GateRule.RAMOLE) -> InMemoryGateSource:
    return InMemoryGateSource(
        {name: make_gate(rule, ranks=_RANKS, shapes=_SHAPES, seed=idx) for idx, name in enumerate(names)}
    )


def _gates(source: InMemoryGateSource | None, *, capacity_bytes: int = 1 << 20, **others) -> LearnedGates:
    modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
    settings = {"dtype": torch.float32, "device": torch.device("cpu"), **others}
    return LearnedGates(modules=modules, source=source, capacity_bytes=capacity_bytes, **settings)


def _plan(gate_id: str, rule: GateRule = GateRule.RAMOLE, *adapter_ids: str) -> RoutingPlan:
    return make_adaptive_plan(rule, [(name, 2, 1.0) for name in adapter_ids or ("a",)], gate_id=gate_id)


class TestLoading:
    def test_a_gate_is_fetched_once_and_kept(self):
        source = _source("g")
        gates = _gates(source)
        gates.load(_plan("g"))
        gates.acquire(_plan("g"))
        gates.acquire(_plan("g"))
        assert source.num_fetches == 1
        assert gates.of(_plan("g")).modules.keys() == {0, 1}
        gates.check_integrity([_plan("g")] * 2)
        gates.release(_plan("g"))
        gates.check_integrity([_plan("g")])

    def test_plans_without_a_gate_need_nothing(self):
        gates = _gates(None)
        base_only = RoutingPlan(gate=make_gate_parameters(GateRule.SMORA))
        for plan in (RoutingPlan(), make_adaptive_plan(GateRule.ARROW, [("a", 2, 1.0)]), base_only):
            gates.acquire(plan)
            gates.release(plan)
        gates.check_integrity([])

    def test_tensors_have_the_models_type_and_biases_their_precision(self):
        gates = _gates(_source("g", rule=GateRule.SMORA), dtype=torch.bfloat16)
        plan = _plan("g", GateRule.SMORA, "a", "b")
        gates.acquire(plan)
        tensors = gates.of(plan).modules[0]
        assert {tensor.dtype for tensor in tensors.gates.values()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in tensors.biases.values()} == {torch.float32}

    def test_vectors_are_standardised(self):
        gates = _gates(_source("g", rule=GateRule.PHATGOOSE))
        plan = _plan("g", GateRule.PHATGOOSE)
        gates.acquire(plan)
        vector_D = gates.of(plan).modules[1].gates["a"]
        assert vector_D.mean().item() == pytest.approx(0, abs=1e-6)
        assert vector_D.std(correction=0).item() == pytest.approx(1)

    def test_two_requests_at_the_same_time_fetch_once(self):
        source = _source("g")
        gates = _gates(source)
        source.may_answer.clear()
        threads = [threading.Thread(target=gates.acquire, args=(_plan("g"),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        source.may_answer.set()
        for thread in threads:
            thread.join()
        assert source.num_fetches == 1
        gates.check_integrity([_plan("g")] * 3)

    def test_a_gate_that_does_not_come_holds_up_no_other(self):
        class HalfHung(InMemoryGateSource):
            def fetch(self, gate_id):
                if gate_id == "hung":
                    return super().fetch(gate_id)
                return self.gates[gate_id]

        source = HalfHung(_source("hung", "g").gates)
        source.may_answer.clear()
        gates = _gates(source)
        hung = threading.Thread(target=gates.load, args=[_plan("hung")])
        hung.start()
        while source.num_fetches == 0:
            pass
        healthy = threading.Thread(target=gates.load, args=[_plan("g")], daemon=True)
        healthy.start()
        healthy.join(timeout=10)
        is_loaded = gates.is_loaded(_plan("g"))
        source.may_answer.set()
        hung.join()
        assert is_loaded
        assert gates.is_loaded(_plan("hung"))


class TestRoom:
    @staticmethod
    def _size() -> int:
        gates = _gates(_source("g"))
        gates.load(_plan("g"))
        return gates.used_bytes

    def test_bytes_are_those_of_the_tensors(self):
        assert self._size() == 4 * 3 * ((5 + 4) + (5 + 6))

    def test_the_least_recently_used_leaves(self):
        source = _source("g", "h", "i")
        gates = _gates(source, capacity_bytes=2 * self._size())
        for gate_id in ("g", "h", "g", "i"):
            gates.load(_plan(gate_id))
        assert [gates.is_loaded(_plan(gate_id)) for gate_id in "ghi"] == [True, False, True]
        assert (gates.num_evictions, source.num_fetches) == (1, 3)
        gates.check_integrity([])

    def test_a_gate_in_use_stays(self):
        gates = _gates(_source("g", "h"), capacity_bytes=self._size())
        gates.acquire(_plan("g"))
        with pytest.raises(Exhausted) as caught:
            gates.acquire(_plan("h"))
        assert caught.value.code == "gate_memory_full"
        gates.check_integrity([_plan("g")])
        gates.release(_plan("g"))
        gates.acquire(_plan("h"))
        gates.check_integrity([_plan("h")])

    def test_a_gate_that_never_fits(self):
        gates = _gates(_source("g"), capacity_bytes=self._size() - 1)
        with pytest.raises(InvalidInput) as caught:
            gates.acquire(_plan("g"))
        assert caught.value.code == "gate_too_large"
        assert gates.used_bytes == 0


class TestRefusals:
    def test_unknown_gates(self):
        for source in (None, _source("g")):
            with pytest.raises(UnknownAdapter) as caught:
                _gates(source).acquire(_plan("other"))
            assert caught.value.code == "unknown_gate"

    def test_a_gate_of_another_rule(self):
        gates = _gates(_source("g", rule=GateRule.PHATGOOSE))
        # Once when it is fetched, once when it is there.
        for _ in range(2):
            with pytest.raises(InvalidInput) as caught:
                gates.acquire(_plan("g", GateRule.RAMOLE))
            assert caught.value.code == "gate_rule_mismatch"
            gates.load(_plan("g", GateRule.PHATGOOSE))
        gates.check_integrity([])

    @pytest.mark.parametrize("rule", [GateRule.PHATGOOSE, GateRule.SMORA])
    def test_an_adapter_that_the_gate_does_not_know(self, rule):
        gates = _gates(_source("g", rule=rule))
        with pytest.raises(InvalidInput) as caught:
            gates.acquire(_plan("g", rule, "a", "stranger"))
        assert caught.value.code == "gate_lacks_adapter"
        assert "stranger" in caught.value.message

    @pytest.mark.parametrize("rule", _LEARNED)
    @pytest.mark.parametrize("shapes", [{"q": (6, 4)}, {"other": (5, 4)}])
    def test_a_gate_of_another_model(self, rule, shapes):
        ranks = {"a": dict.fromkeys(shapes, 2)}
        gates = _gates(InMemoryGateSource({"g": make_gate(rule, ranks=ranks, shapes=shapes)}))
        with pytest.raises(InvalidInput) as caught:
            gates.acquire(_plan("g", rule))
        assert caught.value.code == "gate_shape_mismatch"
        assert next(iter(shapes)) in caught.value.message

    def test_a_router_with_other_outputs(self):
        gates = _gates(
            InMemoryGateSource({"g": make_gate(GateRule.RAMOLE, ranks={"a": {"q": 1}}, shapes={"q": (5, 3)})})
        )
        with pytest.raises(InvalidInput, match="5 inputs and 4 outputs"):
            gates.acquire(_plan("g"))

    def test_a_refused_gate_leaves_nothing_behind(self):
        gates = _gates(_source("g"))
        with pytest.raises(InvalidInput):
            gates.acquire(_plan("g", GateRule.SMORA))
        gates.check_integrity([])
        assert gates.used_bytes == 0
