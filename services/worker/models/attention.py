"""The attention function given to unmodified transformers models.

Shapes: T packed tokens of a step, H query heads, K key-value heads, D head dimension.

transformers lets a model take its attention from a table (`AttentionInterface`). Ours hands every layer's query, keys
and values to the step in progress, which writes to the cache and attends to it; how depends on the cache's layout
(`slot_attention`, `paged_attention`). Its name is not in transformers' mask table, so that no mask is built there:
causality, sliding windows and softcapping are the step's own work.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from services.worker.models.attention_product import AttentionRule

ATTENTION_NAME = "hilora_cache"
"""Under this name transformers finds `_attend`."""


class AttentionStep(Protocol):
    """Where one step's tokens stand in the cache. Masks and index tensors are built once and shared by the layers."""

    def attend(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """Write the step's keys and values, then attend.

        Args:
            layer_idx: which layer's cache.
            query: `[H, T, D]`.
            key: `[K, T, D]`.
            value: `[K, T, D]`.
            rule: scaling, window and softcap of the layer.

        Returns:
            `[T, H, D]`.
        """
        ...


class LayeredCache(Protocol):
    """What attention has to know of a cache before any step."""

    @property
    def num_layers(self) -> int:
        """Layers that have room in it."""
        ...


class AttentionContext:
    """What the layers of one model share. The runner sets `step` before each forward pass."""

    def __init__(self) -> None:
        self.step: AttentionStep | None = None


def attach_attention(model: torch.nn.Module, kv_cache: LayeredCache) -> AttentionContext:
    """Make every attention layer of a transformers model read its step from the context that is returned.

    Raises:
        ValueError: the model has no layer that takes its attention from transformers' table, a layer that the cache
            has no room for, or attention sinks, which no layout knows.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attend)
    set_implementation: Any = model.set_attn_implementation
    set_implementation(ATTENTION_NAME)
    context = AttentionContext()
    layers = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layers with a layer_idx")
    for layer in layers:
        layer_idx: Any = layer.layer_idx
        if layer_idx >= kv_cache.num_layers:
            raise ValueError(f"layer {layer_idx} has no room in a cache of {kv_cache.num_layers} layers")
        if hasattr(layer, "sinks"):
            raise ValueError(f"{type(layer).__name__} uses attention sinks")
        vars(layer)["hilora_attention"] = context
    return context


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 transformers passes None: it builds no mask for us
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The signature transformers calls: tensors are `[1, heads, T, D]`, the answer is `[1, T, H, D]`."""
    step: AttentionStep | None = module.hilora_attention.step
    assert step is not None, "a forward pass outside a step"
    rule = AttentionRule(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling, window=sliding_window, softcap=softcap
    )
    out_THD = step.attend(module.layer_idx, query[0], key[0], value[0], rule)
    return out_THD[None], None
