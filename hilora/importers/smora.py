"""SMoRA (arXiv 2501.15103): every rank of one LoRA is an expert, and a learned gate picks k of them for each token.

    y = W0 x + c B (g(x) * A x),    g = softmax over the k ranks with the largest  w_j . x + bias_j

The factors are plain already. The gate is none of them: it is a `LearnedGate` of rule `smora`, which the worker applies
when a plan names it (`learned_gate_of`). No code of the authors is public; the layout here is PEFT's with

    <path>.lora_router.weight     [R, D]
    <path>.lora_router.bias       [R], may be missing

and `peft_type: SMORA` or `use_smora: true`, `smora_top_k` for k.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Finding, Refuse, Severity
from hilora.importers.protocol import ImportedAdapter, as_plain_lora, is_of_type
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.peft_config import ConfigFields
from hilora.peft_format import pair_factors
from hilora.peft_tensors import module_name
from hilora.routing_plan import GateRule

FORMAT = "smora"
_TOP_K_FIELD = "smora_top_k"
_OWN_FIELDS = frozenset({"use_smora", _TOP_K_FIELD})
_ROUTER_NAME = re.compile(r"(?P<path>.+)\.lora_router(?:\.default)?\.(?P<part>weight|bias)")

Routers = dict[str, dict[str, torch.Tensor]]


class SmoraImporter:
    """See `AdapterImporter`."""

    def recognises(self, config: Mapping[str, object], tensor_names: Collection[str]) -> bool:
        """See `AdapterImporter.recognises`."""
        is_named = is_of_type(config, "SMORA") or config.get("use_smora") is True
        return is_named or any(_ROUTER_NAME.fullmatch(name) for name in tensor_names)

    def expand(
        self, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse
    ) -> ImportedAdapter:
        """See `AdapterImporter.expand`."""
        if config.get(_TOP_K_FIELD) is not None:
            ConfigFields(config, refuse=refuse).positive_int(_TOP_K_FIELD, config[_TOP_K_FIELD])
        routers = _routers_in(tensors)
        plain = {name: tensor for name, tensor in tensors.items() if not _ROUTER_NAME.fullmatch(module_name(name))}
        adapter = pair_factors(config=as_plain_lora(config, without=_OWN_FIELDS), tensors=plain, refuse=refuse)
        for path, parts in sorted(routers.items()):
            factors = adapter.modules.get(path)
            if factors is None:
                refuse(_router_alone(path))
            elif not _fits(parts, factors.lora_a):
                refuse(
                    AdapterShapeMismatch(
                        f"The router of {path[:120]} has shapes "
                        f"{ {part: tuple(tensor.shape) for part, tensor in parts.items()} } for factors of "
                        f"{tuple(factors.lora_a.shape)}.",
                        code="rank_mismatch",
                        remedy="Store a row of lora_router.weight, and a value of lora_router.bias, for each rank.",
                        place=path[:120],
                    )
                )
        return ImportedAdapter(adapter=adapter, source_format=FORMAT, notes=(_gate_is_apart(config),))


def learned_gate_of(tensors: Mapping[str, torch.Tensor], *, adapter_id: str) -> LearnedGate:
    """The gate of an adapter that was registered from these files.

    Args:
        tensors: the content of its `adapter_model.safetensors`.
        adapter_id: the version that the registry made of them; its trained basis has a row for each row of the gate.

    Raises:
        ValueError: there is no gate among the tensors.
    """
    routers = _routers_in(tensors)
    if not any("weight" in parts for parts in routers.values()):
        raise ValueError("these tensors hold no lora_router.weight")
    return LearnedGate(
        rule=GateRule.SMORA,
        modules={
            path: GateTensors(
                gates={adapter_id: parts["weight"]},
                biases={adapter_id: parts["bias"]} if "bias" in parts else {},
            )
            for path, parts in routers.items()
            if "weight" in parts
        },
    )


def _routers_in(tensors: Mapping[str, torch.Tensor]) -> Routers:
    routers: Routers = {}
    for name, tensor in tensors.items():
        match = _ROUTER_NAME.fullmatch(module_name(name))
        if match is not None:
            routers.setdefault(match["path"], {})[match["part"]] = tensor
    return routers


def _fits(parts: Mapping[str, torch.Tensor], lora_a: torch.Tensor) -> bool:
    weight, bias = parts.get("weight"), parts.get("bias")
    has_bias = bias is None or bias.shape == lora_a.shape[:1]
    return weight is not None and weight.shape == lora_a.shape and has_bias


def _router_alone(path: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{path[:120]} has a router and no factors that can be read.",
        code="unpaired_factor",
        remedy="Upload the complete adapter_model.safetensors.",
        place=path[:120],
    )


def _gate_is_apart(config: Mapping[str, object]) -> Finding:
    top_k = config.get(_TOP_K_FIELD)
    return Finding(
        code="learned_gate_apart",
        severity=Severity.WARNING,
        place="lora_router",
        message="The ranks of this SMoRA adapter were registered exactly; its learned gate is no part of them, so that "
        "without it all ranks act at once.",
        remedy="Write the gate by hilora.importers.smora.learned_gate_of and hilora.gate_tensors into "
        "HILORA_WORKER_GATES_DIR, and send plans of gate rule smora, basis trained"
        + (f", top_k {top_k}." if isinstance(top_k, int) else "."),
    )
