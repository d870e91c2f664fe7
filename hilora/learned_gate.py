"""What a learned token gate is: a few tensors per layer, and the file they travel in.

A gate belongs to one base model; the vectors and matrices of PHATGOOSE and SMoRA belong to one adapter version each,
RAMoLE's router to no adapter. A file is a safetensors file with the metadata `format: hilora-gate`, `version: 1`,
`rule: <rule>` and these tensors, of any floating type:

    phatgoose    <module path>/gate/<adapter id>       D
    ramole       <module path>/router_a                G x D
                 <module path>/router_b                O x G
    smora        <module path>/gate/<adapter id>       R x D, a row for each component of the trained basis
                 <module path>/bias/<adapter id>       R; may be left out

Shapes: D in-features, O out-features, R ROCs of an adapter in a layer, G rank of RAMoLE's router.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

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


def read_gate(content: bytes) -> LearnedGate:
    """A gate from a file's content.

    Raises:
        InvalidInput: `invalid_gate`: not such a file, an unknown name, a wrong number of dimensions, a value that is
            not finite, or a part whose counterpart is missing.
    """
    rule = _rule_of(content)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise _invalid(f"It is not a safetensors file: {error}.") from error
    modules: dict[str, GateTensors] = {}
    for module_path, parts in _by_module(rule, tensors).items():
        modules[module_path] = _module_tensors(rule, module_path, parts)
    if not modules:
        raise _invalid("It has no tensors.")
    return LearnedGate(rule=rule, modules=modules)


def write_gate(gate: LearnedGate) -> bytes:
    """The file content of a gate; `read_gate` gives the same gate back."""
    tensors: dict[str, torch.Tensor] = {}
    for module_path, parts in gate.modules.items():
        tensors.update({f"{module_path}/gate/{adapter_id}": tensor for adapter_id, tensor in parts.gates.items()})
        tensors.update({f"{module_path}/bias/{adapter_id}": tensor for adapter_id, tensor in parts.biases.items()})
        if parts.router_a_GD is not None and parts.router_b_OG is not None:
            tensors[f"{module_path}/router_a"] = parts.router_a_GD
            tensors[f"{module_path}/router_b"] = parts.router_b_OG
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(tensors, metadata={**_FORMAT, "rule": gate.rule.value})


def _rule_of(content: bytes) -> GateRule:
    metadata = _metadata(content)
    if any(metadata.get(key) != value for key, value in _FORMAT.items()):
        raise _invalid("Its metadata do not say that it is a gate of version 1.")
    rule = metadata.get("rule")
    if rule not in {known.value for known in _PARTS}:
        raise _invalid(f"Its rule is {rule!r}, which is none of {', '.join(known.value for known in _PARTS)}.")
    return GateRule(rule)


def _by_module(rule: GateRule, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[tuple[str, str], torch.Tensor]]:
    """Tensors by module path, then by part and adapter id."""
    modules: dict[str, dict[tuple[str, str], torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module_path, _, rest = name.partition("/")
        part, _, adapter_id = rest.partition("/")
        if not module_path or part not in _PARTS[rule] or bool(adapter_id) is (part in _SHARED_PARTS):
            raise _invalid(f"{name} is not the name of a tensor of a {rule} gate.")
        if tensor.ndim != _NUM_DIMENSIONS[rule, part] or 0 in tensor.shape:
            raise _invalid(f"{name} has shape {tuple(tensor.shape)}.")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise _invalid(f"{name} holds something else than finite numbers.")
        modules.setdefault(module_path, {})[part, adapter_id] = tensor
    return modules


def _module_tensors(rule: GateRule, path: str, parts: Mapping[tuple[str, str], torch.Tensor]) -> GateTensors:
    if rule is GateRule.RAMOLE:
        router_a, router_b = parts.get(("router_a", "")), parts.get(("router_b", ""))
        if router_a is None or router_b is None or router_a.shape[0] != router_b.shape[1]:
            raise _invalid(f"{path} needs router_a [G, D] and router_b [O, G] of one G.")
        return GateTensors(router_a_GD=router_a, router_b_OG=router_b)
    gates = {adapter_id: tensor for (part, adapter_id), tensor in parts.items() if part == "gate"}
    biases = {adapter_id: tensor for (part, adapter_id), tensor in parts.items() if part == "bias"}
    for adapter_id, bias in biases.items():
        if adapter_id not in gates or bias.shape[0] != gates[adapter_id].shape[0]:
            raise _invalid(f"{path} has a bias of {adapter_id} that no gate matrix belongs to.")
    return GateTensors(gates=gates, biases=biases)


def _metadata(content: bytes) -> Mapping[str, str]:
    num_header_bytes = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + num_header_bytes])
        return {str(key): str(value) for key, value in header["__metadata__"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid("It is not a safetensors file with metadata.") from error


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(
        f"The gate's file cannot be used. {message}",
        code="invalid_gate",
        remedy="Write it with hilora.learned_gate.write_gate.",
    )
