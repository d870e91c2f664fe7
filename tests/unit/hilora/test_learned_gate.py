from __future__ import annotations

import pytest
import torch

from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors, LearnedGate, gate_from_tensors, gate_tensors
from hilora.routing_plan import GateRule
from tests.builders.gates import make_gate

_RANKS = {"a@1": {"model.q": 2, "model.up": 3}, "b@2": {"model.q": 1}}
_SHAPES = {"model.q": (5, 4), "model.up": (5, 6), "model.down": (6, 5)}
_LEARNED = [rule for rule in GateRule if rule.is_learned]


def _same(one: GateTensors, other: GateTensors) -> bool:
    pairs = [(one.router_a_GD, other.router_a_GD), (one.router_b_OG, other.router_b_OG)]
    for mine, theirs in ((one.gates, other.gates), (one.biases, other.biases)):
        assert mine.keys() == theirs.keys()
        pairs += [(mine[key], theirs[key]) for key in mine]
    return all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


class TestLayout:
    @pytest.mark.parametrize("rule", _LEARNED)
    def test_what_is_written_is_read(self, rule):
        gate = make_gate(rule, ranks=_RANKS, shapes=_SHAPES)
        tensors, metadata = gate_tensors(gate)
        found = gate_from_tensors(tensors, metadata=metadata)
        assert found.rule is rule
        assert found.modules.keys() == gate.modules.keys() == {"model.q", "model.up"}
        assert all(_same(found.modules[path], gate.modules[path]) for path in gate.modules)

    def test_names(self):
        names = {
            rule: set(gate_tensors(make_gate(rule, ranks={"a@1": {"model.q": 2}}, shapes=_SHAPES))[0])
            for rule in _LEARNED
        }
        assert names == {
            GateRule.PHATGOOSE: {"model.q/gate/a@1"},
            GateRule.RAMOLE: {"model.q/router_a", "model.q/router_b"},
            GateRule.SMORA: {"model.q/gate/a@1"},
        }
        assert "model.q/bias/b@2" in gate_tensors(make_gate(GateRule.SMORA, ranks=_RANKS, shapes=_SHAPES))[0]

    def test_a_gates_modules_cannot_be_changed(self):
        gate = LearnedGate(rule=GateRule.RAMOLE, modules={})
        with pytest.raises(TypeError):
            gate.modules["q"] = GateTensors()  # pyright: ignore[reportIndexIssue]


def _refused(rule: str, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        gate_from_tensors(tensors, metadata={"format": "hilora-gate", "version": "1", "rule": rule, **metadata})
    assert caught.value.code == "invalid_gate"
    return caught.value.message


class TestRefusals:
    def test_something_else_than_a_gate(self):
        vector = {"q/gate/a": torch.ones(3)}
        assert "metadata" in _refused("phatgoose", vector, format="pt")
        assert "metadata" in _refused("phatgoose", vector, version="2")
        assert "'arrow'" in _refused("arrow", vector)
        assert "no tensors" in _refused("phatgoose", {})

    @pytest.mark.parametrize("name", ["q", "q/gate", "q/gate/", "/gate/a", "q/router_a", "q/bias/a", "gate"])
    def test_names_that_a_rule_does_not_have(self, name):
        assert name in _refused("phatgoose", {name: torch.ones(3)})

    def test_a_shared_tensor_with_an_adapter(self):
        assert "q/router_a/a" in _refused("ramole", {"q/router_a/a": torch.ones(2, 3)})

    @pytest.mark.parametrize("shape", [(3, 3), (0,), ()])
    def test_shapes(self, shape):
        assert str(shape) in _refused("phatgoose", {"q/gate/a": torch.ones(shape)})

    @pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.tensor([1, 2])])
    def test_values(self, value):
        assert "finite" in _refused("phatgoose", {"q/gate/a": value})

    def test_half_a_router(self):
        assert "router_b" in _refused("ramole", {"q/router_a": torch.ones(2, 3)})
        assert "router_b" in _refused("ramole", {"q/router_a": torch.ones(2, 3), "q/router_b": torch.ones(4, 3)})

    def test_a_bias_without_its_matrix(self):
        assert "bias of a" in _refused("smora", {"q/bias/a": torch.ones(2), "q/gate/b": torch.ones(2, 3)})
        assert "bias of a" in _refused("smora", {"q/bias/a": torch.ones(3), "q/gate/a": torch.ones(2, 3)})
