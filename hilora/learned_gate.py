"""What a learned token gate is: a few tensors per layer, and under what names they travel.

A gate belongs to one base model; the vectors and matrices of PHATGOOSE and SMoRA belong to one adapter version each,
RAMoLE's router to no adapter. Its file is a safetensors file with the metadata `format: hilora-gate`, `version: 1`,
`rule: <rule>` and these tensors, of any floating type:

    phatgoose    <module path>/gate/<adapter id>       D
    ramole       <module path>/router_a                G x D
                 <module path>/router_b                O x G
    smora        <module path>/gate/<adapter id>       R x D, a row for each component of the trained basis
                 <module path>/bias/<adapter id>       R; may be left out

Shapes: D in-features, O out-features, R ROCs of an adapter in a layer, G rank of RAMoLE's router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from hilora.errors import InvalidInput
from hilora.routing_plan import GateRule

_FORMAT = {"format": "hilora-gate", "version": "1"}
_PARTS = {
    GateRule.PHATGOOSE: {"gate"},
    GateRule.RAMOLE: {"router_a", "router_b"},
    GateRule.SMORA: {"gate", "bias"},
}
_NUM_DIMENSIONS = {
    (GateRule.PHATGOOSE, "gate"): 1,
    (GateRule.RAMOLE, "router_a"): 2,
    (GateRule.RAMOLE, "router_b"): 2,
    (GateRule.SMORA, "gate"): 2,
    (GateRule.SMORA, "bias"): 1,
}
_SHARED_PARTS = frozenset({"router_a", "router_b"})


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTensors:
    """One layer's tensors; which of them there are depends on the rule."""

    gates: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """By adapter id: PHATGOOSE's vector `[D]`, or SMoRA's matrix `[R, D]`."""
    biases: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """By adapter id: SMoRA's bias `[R]`."""
    router_a_GD: torch.Tensor | None = None
    """RAMoLE's down-projection."""
    router_b_OG: torch.Tensor | None = None
    """RAMoLE's up-projection."""


@dataclass(frozen=True, kw_only=True)
class LearnedGate:
    """A gate artifact as read from its file."""

    rule: GateRule
    modules: Mapping[str, GateTensors]
    """By module path."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))


def gate_from_tensors(tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]) -> LearnedGate:
    """A gate from what its file holds.

    Raises:
        InvalidInput: `invalid_gate`: not a gate, an unknown name, a wrong number of dimensions, a value that is not
            finite, or a part whose counterpart is missing.
    """
    if any(metadata.get(key) != value for key, value in _FORMAT.items()):
        raise invalid_gate("Its metadata do not say that it is a gate of version 1.")
    named = metadata.get("rule")
    if named not in {rule.value for rule in _PARTS}:
        raise invalid_gate(f"Its rule is {named!r}, which is none of {', '.join(rule.value for rule in _PARTS)}.")
    rule = GateRule(named)
    modules = {path: _module_tensors(rule, path, parts) for path, parts in _by_module(rule, tensors).items()}
    if not modules:
        raise invalid_gate("It has no tensors.")
    return LearnedGate(rule=rule, modules=modules)


def gate_tensors(gate: LearnedGate) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a gate's file; `gate_from_tensors` gives the same gate back."""
    tensors: dict[str, torch.Tensor] = {}
    for module_path, parts in gate.modules.items():
        tensors.update({f"{module_path}/gate/{adapter_id}": tensor for adapter_id, tensor in parts.gates.items()})
        tensors.update({f"{module_path}/bias/{adapter_id}": tensor for adapter_id, tensor in parts.biases.items()})
        if parts.router_a_GD is not None and parts.router_b_OG is not None:
            tensors[f"{module_path}/router_a"] = parts.router_a_GD
            tensors[f"{module_path}/router_b"] = parts.router_b_OG
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return contiguous, {**_FORMAT, "rule": gate.rule.value}


def invalid_gate(message: str) -> InvalidInput:
    """The error for a gate's file that cannot be used, for the reason given."""
    return InvalidInput(
        f"The gate's file cannot be used. {message}",
        code="invalid_gate",
        remedy="Write it with the tensors and metadata that hilora.learned_gate.gate_tensors gives.",
        place="plan.gate.gate_id",
    )


def _by_module(rule: GateRule, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[tuple[str, str], torch.Tensor]]:
    """Tensors by module path, then by part and adapter id."""
    modules: dict[str, dict[tuple[str, str], torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module_path, _, rest = name.partition("/")
        part, _, adapter_id = rest.partition("/")
        if not module_path or part not in _PARTS[rule] or bool(adapter_id) is (part in _SHARED_PARTS):
            raise invalid_gate(f"{name} is not the name of a tensor of a {rule} gate.")
        if tensor.ndim != _NUM_DIMENSIONS[rule, part] or 0 in tensor.shape:
            raise invalid_gate(f"{name} has shape {tuple(tensor.shape)}.")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise invalid_gate(f"{name} holds something else than finite numbers.")
        modules.setdefault(module_path, {})[part, adapter_id] = tensor
    return modules


def _module_tensors(rule: GateRule, path: str, parts: Mapping[tuple[str, str], torch.Tensor]) -> GateTensors:
    if rule is GateRule.RAMOLE:
        router_a, router_b = parts.get(("router_a", "")), parts.get(("router_b", ""))
        if router_a is None or router_b is None or router_a.shape[0] != router_b.shape[1]:
            raise invalid_gate(f"{path} needs router_a [G, D] and router_b [O, G] of one G.")
        return GateTensors(router_a_GD=router_a, router_b_OG=router_b)
    gates = {adapter_id: tensor for (part, adapter_id), tensor in parts.items() if part == "gate"}
    biases = {adapter_id: tensor for (part, adapter_id), tensor in parts.items() if part == "bias"}
    for adapter_id, bias in biases.items():
        if adapter_id not in gates or bias.shape[0] != gates[adapter_id].shape[0]:
            raise invalid_gate(f"{path} has a bias of {adapter_id} that no gate matrix belongs to.")
    return GateTensors(gates=gates, biases=biases)
