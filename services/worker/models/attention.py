"""The attention function given to unmodified transformers models.

Shapes: T packed tokens of a step, N cache slots, B decode tokens, H query heads, K key-value heads, G = H / K,
L positions, D head dimension, n tokens of a prefill chunk.

transformers lets a model take its attention from a table (`AttentionInterface`). Ours writes the step's keys and
values into the cache's slots and attends to the cache: all decode tokens as one padded product, each prefill chunk by
itself. Its name is not in transformers' mask table, so that no mask is built there; causality, sliding windows and
softcapping are applied here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn import functional

ATTENTION_NAME = "hilora_slots"
"""Under this name transformers finds `_attend`."""

_MAX_SPREAD = 2
"""Decode slots are read in place while their range is at most this many times their number; gathered otherwise."""


class KeyValueStore(Protocol):
    """Where keys and values of all positions live."""

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[N, K, L, D]`, written in place."""
        ...

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[N, K, L, D]`, written in place."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillChunk:
    """Consecutive prompt tokens of one request."""

    row: int
    """Its first row among the step's packed tokens."""
    num_tokens: int
    slot: int
    start: int
    """Position of its first token; everything before is in the cache."""


@dataclass(frozen=True, kw_only=True)
class DecodeRows:
    """The step's decode tokens: the first rows of the packed tokens."""

    slots: torch.Tensor
    """`[B]` int64, distinct."""
    positions: torch.Tensor
    """`[B]` int64: where each token stands in its sequence."""
    max_len: int
    """Largest position plus one."""
    first_slot: int
    num_slots: int
    """The slots lie in `first_slot .. first_slot + num_slots - 1`."""

    @property
    def size(self) -> int:
        """B."""
        return int(self.slots.shape[0])


@dataclass(kw_only=True)
class AttentionStep:
    """What attention has to know of one step; masks are built once and shared by the layers."""

    decode: DecodeRows | None
    chunks: tuple[PrefillChunk, ...]
    device: torch.device
    _masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int | None, *, is_in_place: bool) -> torch.Tensor:
        """`[S, 1, 1, L]`, True where a decode token may look; S runs over the slots that are read."""
        key = (-1, window or 0, int(is_in_place))
        if key not in self._masks:
            assert self.decode is not None
            last = self.decode.positions
            if is_in_place:
                # Slots in the range that are not decoding look at position 0 only: a row without any visible
                # position would be NaN.
                last = last.new_zeros(self.decode.num_slots)
                last[self.decode.slots - self.decode.first_slot] = self.decode.positions
            grid = torch.arange(self.decode.max_len, device=last.device)
            mask = grid[None, :] <= last[:, None]
            if window is not None:
                mask &= grid[None, :] > last[:, None] - window
            self._masks[key] = mask[:, None, None, :]
        return self._masks[key]

    def chunk_mask(self, chunk: PrefillChunk, window: int | None, first: int) -> torch.Tensor:
        """`[n, L']`, True where a chunk's token may look, over positions `first .. chunk end`."""
        key = (chunk.row, window or 0, first)
        if key not in self._masks:
            stop = chunk.start + chunk.num_tokens
            rows = torch.arange(chunk.start, stop, device=self.device)
            grid = torch.arange(first, stop, device=self.device)
            mask = grid[None, :] <= rows[:, None]
            if window is not None:
                mask &= grid[None, :] > rows[:, None] - window
            self._masks[key] = mask
        return self._masks[key]


class SlotAttention:
    """The attention of one model over one cache. The runner sets `step` before each forward pass."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.step: AttentionStep | None = None

    def attach(self, model: torch.nn.Module) -> None:
        """Make every attention layer of a transformers model call this object.

        Raises:
            ValueError: the model has no layer that takes its attention from transformers' table.
        """
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _attend)
        set_implementation: Any = model.set_attn_implementation
        set_implementation(ATTENTION_NAME)
        layers = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
        if not layers:
            raise ValueError(f"{type(model).__name__} has no attention layers with a layer_idx")
        for layer in layers:
            vars(layer)["hilora_attention"] = self

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Write the step's keys and values, then attend.

        Args:
            layer_idx: which layer's cache.
            query: `[H, T, D]`.
            key: `[K, T, D]`.
            value: `[K, T, D]`.
            scaling: factor of the scores.
            window: positions a token may look back on, itself included; None is all.
            softcap: `c` of `c tanh(score / c)`; None is off.

        Returns:
            `[T, H, D]`.
        """
        step = self.step
        assert step is not None, "a forward pass outside a step"
        keys, values = self._store.keys(layer_idx), self._store.values(layer_idx)
        out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        rule = _Rule(scaling=scaling, window=window, softcap=softcap)
        if step.decode is not None:
            size = step.decode.size
            index = (step.decode.slots, slice(None), step.decode.positions)
            keys[index] = key[:, :size].transpose(0, 1)
            values[index] = value[:, :size].transpose(0, 1)
            out[:size] = _attend_decode(step, query[:, :size].transpose(0, 1), keys, values, rule)
        for chunk in step.chunks:
            rows = slice(chunk.row, chunk.row + chunk.num_tokens)
            stop = chunk.start + chunk.num_tokens
            keys[chunk.slot, :, chunk.start : stop] = key[:, rows]
            values[chunk.slot, :, chunk.start : stop] = value[:, rows]
            out[rows] = _attend_chunk(step, chunk, query[:, rows], keys, values, rule).transpose(0, 1)
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rule:
    scaling: float
    window: int | None
    softcap: float | None


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
    attention: SlotAttention = module.hilora_attention
    out = attention.attend(
        module.layer_idx,
        query[0],
        key[0],
        value[0],
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


def _attend_decode(
    step: AttentionStep, query_BHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: _Rule
) -> torch.Tensor:
    """Decode tokens `[B, H, D]` against their slots. The G heads that share a key are queries of one product."""
    decode = step.decode
    assert decode is not None
    num_heads, head_dim = query_BHD.shape[1:]
    query = query_BHD.reshape(decode.size, keys.shape[1], -1, head_dim)
    is_in_place = decode.num_slots <= _MAX_SPREAD * decode.size
    if is_in_place:
        span = slice(decode.first_slot, decode.first_slot + decode.num_slots)
        keys, values = keys[span, :, : decode.max_len], values[span, :, : decode.max_len]
        place = decode.slots - decode.first_slot
        spread = query.new_zeros(decode.num_slots, *query.shape[1:])
        spread[place] = query
        query = spread
    else:
        keys = keys[:, :, : decode.max_len].index_select(0, decode.slots)
        values = values[:, :, : decode.max_len].index_select(0, decode.slots)
        place = None
    mask = step.decode_mask(rule.window, is_in_place=is_in_place)
    out = _product(query, keys, values, mask, rule)
    if place is not None:
        out = out[place]
    return out.reshape(decode.size, num_heads, head_dim)


def _attend_chunk(
    step: AttentionStep,
    chunk: PrefillChunk,
    query_HnD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rule: _Rule,
) -> torch.Tensor:
    """A chunk's tokens `[H, n, D]` against their own slot."""
    stop = chunk.start + chunk.num_tokens
    first = 0 if rule.window is None else max(0, chunk.start - rule.window + 1)
    keys, values = keys[chunk.slot, None, :, first:stop], values[chunk.slot, None, :, first:stop]
    mask = None
    is_window_open = rule.window is None or stop <= rule.window
    if chunk.start > 0 or not is_window_open or rule.softcap is not None:
        mask = step.chunk_mask(chunk, None if is_window_open else rule.window, first)
    return _product(query_HnD[None], keys, values, mask, rule)[0]


def _product(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, rule: _Rule
) -> torch.Tensor:
    """`softmax(cap(q k^T)) v` over `[S, heads, tokens, D]`; no mask means causal."""
    is_grouped = query.shape[1] != keys.shape[1]
    if rule.softcap is None:
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=rule.scaling, enable_gqa=is_grouped
        )
    assert mask is not None
    if is_grouped:
        num_groups = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(num_groups, dim=1), values.repeat_interleave(num_groups, dim=1)
    scores = (query @ keys.transpose(-1, -2)) * rule.scaling
    scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    # As transformers' eager attention does: the softmax in at least float32, the product in the model's type.
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype) @ values
