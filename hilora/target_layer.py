"""Which layers of a model can carry rank-one components, by what name, and how large they are.

Shapes: D in-features, O out-features, E experts, I an expert's inner width, V vocabulary.

A layer is recognised by how it looks, not by its class, so that quantised layers count like the ones they replace:

    linear           `in_features` and `out_features`; or transformers' `Conv1D`, whose weight is `[D, O]`
    embedding        `nn.Embedding`: a linear layer whose input is one-hot, D = V; and a kind of it that multiplies its
                     rows by one number, `embed_scale`. Others, that find positions by themselves, normalise rows or
                     keep some apart, make something else of their input than a linear layer does
    experts          one weight `[E, 2 I, D]` for gate and up, one `[E, D, I]` for down. Each expert's four linear
                     layers have a name of their own: `<path>.<expert>.gate_proj`, `.up_proj`, `.down_proj` for
                     adapters of single layers, `.gate_up_proj` for adapters of the fused weight
    expert router    a weight `[E, D]` whose product chooses the experts

Registry and worker both go by this list: what one accepts the other can serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from inspect import signature
from typing import Any

import torch
from torch import nn

EXPERT_PROJECTIONS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of an expert, in the order of their module indices."""
_POSITION_BIAS = "relative_attention_bias"
"""T5 keeps scores of distances in an embedding; it is asked about pairs of tokens, not about a token."""


class LayerKind(StrEnum):
    """How a layer takes its input, and so how its components are applied."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    EXPERTS = "experts"
    EXPERT_ROUTER = "expert_router"


@dataclass(frozen=True, kw_only=True)
class TargetLayer:
    """One layer of a model."""

    path: str
    """Where it stands in the model."""
    module: nn.Module
    kind: LayerKind
    features: Mapping[str, tuple[int, int]]
    """`(out-features, in-features)` by module path: the layer's own path, or one path per linear layer of each
    expert."""


def target_layers(model: nn.Module) -> list[TargetLayer]:
    """The layers that adapters may target, in the order in which the model lists them; a layer that stands in two
    places is listed once."""
    found: list[TargetLayer] = []
    for path, module in model.named_modules():
        kind = _kind_of(path, module)
        if kind is LayerKind.EXPERTS:
            found.append(TargetLayer(path=path, module=module, kind=kind, features=_expert_features(path, module)))
        elif kind is not None:
            found.append(TargetLayer(path=path, module=module, kind=kind, features={path: _features_of(module, kind)}))
    return found


def target_features(model: nn.Module) -> dict[str, tuple[int, int]]:
    """`(out-features, in-features)` of all layers of a model, by module path."""
    return {path: features for layer in target_layers(model) for path, features in layer.features.items()}


def tied_modules(model: nn.Module) -> frozenset[str]:
    """The paths of those layers of a model that share one weight with another, as embedding and output often do."""
    paths_of_weight: dict[int, list[str]] = {}
    for layer in target_layers(model):
        weight = getattr(layer.module, "weight", None)
        if isinstance(weight, torch.Tensor):
            paths_of_weight.setdefault(id(weight), []).append(layer.path)
    return frozenset(path for paths in paths_of_weight.values() if len(paths) > 1 for path in paths)


def _kind_of(path: str, module: Any) -> LayerKind | None:
    if isinstance(module, nn.Embedding):
        is_usable = not path.endswith(_POSITION_BIAS) and (_is_plain_embedding(module) or _is_scaled_embedding(module))
        return LayerKind.EMBEDDING if is_usable else None
    if _is_linear(module) or _is_transposed_linear(module):
        return LayerKind.LINEAR
    if _are_experts(module):
        return LayerKind.EXPERTS
    if _is_expert_router(module):
        return LayerKind.EXPERT_ROUTER
    return None


def _is_plain_embedding(module: nn.Embedding) -> bool:
    return type(module).forward is nn.Embedding.forward


def _is_scaled_embedding(module: Any) -> bool:
    scale = getattr(module, "embed_scale", None)
    is_number = scale.numel() == 1 if isinstance(scale, torch.Tensor) else isinstance(scale, int | float)
    # `self` and the ids; and nothing to compute with but the weight and the number.
    takes_ids_only = len(signature(type(module).forward).parameters) == 2
    has_weight_only = [name for name, _ in module.named_parameters()] == ["weight"] and not list(module.children())
    return is_number and takes_ids_only and has_weight_only


def _is_linear(module: Any) -> bool:
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return all(isinstance(number, int) for number in features)


def _is_transposed_linear(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and _shape_of(module, "weight") == (
        getattr(module, "nx", None),
        getattr(module, "nf", None),
    )


def _are_experts(module: Any) -> bool:
    gate_up, down = _shape_of(module, "gate_up_proj"), _shape_of(module, "down_proj")
    if gate_up is None or down is None or len(gate_up) != 3:
        return False
    num_experts, two_inner, num_in = gate_up
    is_plain = (
        getattr(module, "has_gate", True)
        and getattr(module, "is_concatenated", True)
        and not getattr(module, "is_transposed", False)
        and not getattr(module, "has_bias", False)
        and not getattr(module, "has_post_expert_norm", False)
    )
    # The shapes alone do not tell `[E, 2 I, D]` from its transpose where 2 I = D; the flags do, where there are any.
    return is_plain and down == (num_experts, num_in, two_inner // 2) and hasattr(module, "act_fn")


def _is_expert_router(module: Any) -> bool:
    weight = _shape_of(module, "weight")
    named = (getattr(module, "num_experts", None), getattr(module, "hidden_dim", None))
    return hasattr(module, "top_k") and weight is not None and weight == named


def _shape_of(module: Any, name: str) -> tuple[int, ...] | None:
    tensor = getattr(module, name, None)
    return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else None


def _features_of(module: Any, kind: LayerKind) -> tuple[int, int]:
    if kind is LayerKind.EMBEDDING:
        return int(module.embedding_dim), int(module.num_embeddings)
    if kind is LayerKind.EXPERT_ROUTER:
        return int(module.num_experts), int(module.hidden_dim)
    if _is_linear(module):
        return int(module.out_features), int(module.in_features)
    return int(module.nf), int(module.nx)


def _expert_features(path: str, module: Any) -> dict[str, tuple[int, int]]:
    num_experts, two_inner, num_in = module.gate_up_proj.shape
    inner = two_inner // 2
    shapes = ((two_inner, num_in), (inner, num_in), (inner, num_in), (num_in, inner))
    return {
        f"{path}.{expert_idx}.{projection}": shape
        for expert_idx in range(num_experts)
        for projection, shape in zip(EXPERT_PROJECTIONS, shapes, strict=True)
    }
