"""Gates of a leader and of its follower: the same values, and nothing that the leader has no longer."""

from __future__ import annotations

import pickle

import pytest
import torch

from hilora.routing_plan import GateRule, RoutingPlan
from services.worker.lora.gating.gate_mirror import GateFollower, GateLeader
from services.worker.lora.gating.learned_gates import LearnedGates, LoadedGate, gate_id_of
from services.worker.lora.pool.roc_arena import ModuleShape
from tests.builders.gates import InMemoryGateSource, make_adaptive_plan, make_gate

_SHAPES = {"q": (5, 4), "up": (5, 6)}
_RANKS = {"a": {"q": 2, "up": 3}, "b": {"q": 1}}
_LEARNED = [rule for rule in GateRule if rule.is_learned]
_CPU = torch.device("cpu")


class _Pair:
    """A leader and a follower in one process: what one shares waits until the other takes it."""

    def __init__(self, rule: GateRule, *, dtype: torch.dtype = torch.float64, capacity_bytes: int = 1 << 20) -> None:
        modules = [ModuleShape(module_path=path, in_features=d, out_features=o) for path, (d, o) in _SHAPES.items()]
        source = InMemoryGateSource(
            {name: make_gate(rule, ranks=_RANKS, shapes=_SHAPES, seed=idx) for idx, name in enumerate("ghi")}
        )
        self.leading, self.following = (
            LearnedGates(modules=modules, source=one_source, capacity_bytes=capacity_bytes, dtype=dtype, device=_CPU)
            for one_source in (source, None)
        )
        self._leader, self._follower = GateLeader(self.leading), GateFollower(self.following, device=_CPU)

    def step(self, *plans: RoutingPlan) -> int:
        """A step with these plans, which have acquired their gates; returns how many tensors travelled."""
        told = self._leader.change_for([gate_id for plan in plans if (gate_id := gate_id_of(plan)) is not None])
        heard = pickle.loads(pickle.dumps(told))
        sent: list[torch.Tensor] = []
        self._leader.enact(told, lambda values: sent.append(values.clone()))
        num_sent = len(sent)
        self._follower.enact(heard, lambda values: values.copy_(sent.pop(0)))
        assert not sent, "the follower took less than it was given"
        return num_sent


def _plan(rule: GateRule, gate_id: str) -> RoutingPlan:
    return make_adaptive_plan(rule, [("a", 3, 1.0), ("b", 1, 1.0)], gate_id=gate_id)


def _assert_same(found: LoadedGate, expected: LoadedGate) -> None:
    assert (found.rule, found.adapter_ids, found.num_bytes) == (
        expected.rule,
        expected.adapter_ids,
        expected.num_bytes,
    )
    assert found.modules.keys() == expected.modules.keys()
    for module_idx, tensors in expected.modules.items():
        same = found.modules[module_idx]
        for name in ("gates", "biases"):
            given, wanted = getattr(same, name), getattr(tensors, name)
            assert list(given) == list(wanted)
            assert all(torch.equal(given[key], wanted[key]) and given[key].dtype is wanted[key].dtype for key in wanted)
        for name in ("router_a_GD", "router_b_OG"):
            given, wanted = getattr(same, name), getattr(tensors, name)
            assert (given is None and wanted is None) or torch.equal(given, wanted)


class TestMirror:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("rule", _LEARNED)
    def test_a_follower_has_what_the_leader_has(self, rule, dtype) -> None:
        pair, plan = _Pair(rule, dtype=dtype), _plan(rule, "g")
        pair.leading.acquire(plan)
        assert pair.step(plan) > 0
        _assert_same(pair.following.of(plan), pair.leading.of(plan))

    def test_a_gate_travels_once(self) -> None:
        pair, plan = _Pair(GateRule.SMORA), _plan(GateRule.SMORA, "g")
        pair.leading.acquire(plan)
        assert pair.step(plan) > 0
        assert pair.step(plan, plan) == 0

    def test_plans_without_a_gate_change_nothing(self) -> None:
        assert _Pair(GateRule.SMORA).step(make_adaptive_plan(GateRule.ARROW, [("a", 3, 1.0)]), RoutingPlan()) == 0

    def test_what_left_the_leader_leaves_the_follower_before_others_come(self) -> None:
        rule = GateRule.RAMOLE
        probe = _Pair(rule)
        probe.leading.load(_plan(rule, "g"))
        pair = _Pair(rule, capacity_bytes=2 * probe.leading.used_bytes)
        for gate_id in "ghi":
            plan = _plan(rule, gate_id)
            pair.leading.acquire(plan)
            pair.step(plan)
            pair.leading.release(plan)
        assert [pair.following.is_loaded(_plan(rule, gate_id)) for gate_id in "ghi"] == [False, True, True]
        assert (pair.following.used_bytes, pair.following.num_evictions) == (pair.leading.used_bytes, 1)
        pair.following.check_integrity([])

    def test_a_gate_may_come_back(self) -> None:
        rule = GateRule.PHATGOOSE
        probe = _Pair(rule)
        probe.leading.load(_plan(rule, "g"))
        pair = _Pair(rule, capacity_bytes=probe.leading.used_bytes)
        for gate_id in "ghg":
            plan = _plan(rule, gate_id)
            pair.leading.acquire(plan)
            assert pair.step(plan) > 0
            _assert_same(pair.following.of(plan), pair.leading.of(plan))
            pair.leading.release(plan)
