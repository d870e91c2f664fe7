"""The arithmetic that both layouts of the cache share: rules, masks, the product, and how rows are batched.

Shapes: S sequences in one product, H query heads, K key-value heads, n tokens of a sequence, L positions read,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

_RUN_COST_POSITIONS = 256
"""What one more product costs, in positions that could be read meanwhile: measured at 60 to 150 for head dimension 64
and 2 to 8 key-value heads on one core; above that, so that a step does not fall apart into many small products."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRule:
    """How a layer attends."""

    scaling: float
    """Factor of the scores."""
    window: int | None = None
    """Positions a token may look back on, itself included; None is all."""
    softcap: float | None = None
    """`c` of `c tanh(score / c)`; None is off."""


def position_bias(last: torch.Tensor, *, first: int, stop: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores over positions `first .. stop - 1`: 0 where a token may look, minus infinity elsewhere.

    A bias instead of a boolean mask: `scaled_dot_product_attention` makes one of the other in every layer.

    Args:
        last: `[n]`, the position of each token: the last one it may look at.
        first: first position that is read.
        stop: one past the last position that is read.
        window: as in `AttentionRule`.
        dtype: the query's.

    Returns:
        `[n, stop - first]`.
    """
    grid = torch.arange(first, stop, device=last.device)
    is_hidden = grid[None, :] > last[:, None]
    if window is not None:
        is_hidden |= grid[None, :] <= last[:, None] - window
    return torch.zeros(is_hidden.shape, dtype=dtype, device=last.device).masked_fill_(is_hidden, float("-inf"))


def attention_product(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rule: AttentionRule,
    *,
    bias: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """`softmax(cap(q k^T) + bias) v`; the window must be in the bias.

    Args:
        query: `[S, H, n, D]`.
        keys: `[S, K, L, D]`.
        values: `[S, K, L, D]`.
        rule: scaling and softcap.
        bias: broadcastable to `[S, H, n, L]`; None where everything may be seen.
        is_causal: the i-th token sees the first i positions only; without a bias or a softcap.

    Returns:
        `[S, H, n, D]`.
    """
    is_grouped = query.shape[1] != keys.shape[1]
    if rule.softcap is None:
        return functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, is_causal=is_causal, scale=rule.scaling, enable_gqa=is_grouped
        )
    assert not is_causal, "softcapped attention takes its causality from the bias"
    if is_grouped:
        num_groups = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(num_groups, dim=1), values.repeat_interleave(num_groups, dim=1)
    scores = (query @ keys.transpose(-1, -2)) * rule.scaling
    scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if bias is not None:
        scores = scores + bias
    # As transformers' eager attention does: the softmax in at least float32, the product in the model's type.
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype) @ values


def split_runs(places: Sequence[int], lengths: Sequence[int]) -> list[slice]:
    """Divide neighbouring sequences into runs, each to be read as one padded product.

    A product reads `(last place - first place + 1) x longest length` positions. A sequence joins the run before it
    unless a product of its own is cheaper: after a much shorter or longer one, or behind a gap.

    Args:
        places: ascending places of the sequences in memory.
        lengths: positions each of them has.

    Returns:
        Slices of the sequences, in order, that cover all.
    """
    runs: list[slice] = []
    begin, longest = 0, 0
    for idx, (place, length) in enumerate(zip(places, lengths, strict=True)):
        if idx > begin:
            apart = (places[idx - 1] - places[begin] + 1) * longest + length + _RUN_COST_POSITIONS
            if (place - places[begin] + 1) * max(longest, length) > apart:
                runs.append(slice(begin, idx))
                begin, longest = idx, 0
        longest = max(longest, length)
    if places:
        runs.append(slice(begin, len(places)))
    return runs
