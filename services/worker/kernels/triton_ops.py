"""The GPU kernels: shrink and gate in one, expand in another (arXiv 2510.12266, token level).

Shapes: I items, G groups of an item's plan, S slots of a group (a power of two, at least 16), P = G S slots of a plan,
T rows of the step, D in-features, O out-features, N rows of the pool.

An *item* is up to `BLOCK_T` consecutive rows of the step with one plan: a decode token, or a piece of a prompt. Nothing
is copied per plan: both kernels gather rows of the pool by index. `roc_shrink_gate` runs one program per item and
group, so that even a single decode token keeps several multiprocessors busy, sums `a . x` over blocks of D, and decides
in registers which slots act; it writes their gains, 0 elsewhere. `roc_expand` runs one program per item and block of O,
and loads a row of `b` only if some token of the item kept it: masked loads move no bytes.

Launches take buffers of fixed size; items beyond those in use have length 0 and return at once. So a captured graph
stays valid while the buffers' contents change. Programs of items that share adapters are neighbours when the caller
orders items by plan, which is what lets the second one find the rows in the L2 cache.

`TRITON_INTERPRET=1` runs them on CPU tensors; `torch_ops` is what they are tested against.
"""

# Kernels are Python that Triton compiles: their pointers have no types, and their launches take options of their own.
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

MIN_GROUP_SLOTS = 16
"""Smallest S: the shortest side of a tensor-core product."""

_IS_INTERPRETED = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]
"""The interpreter multiplies bfloat16 as the integers it keeps them in; there, products are widened first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemBuffers:
    """Which rows have which plan. The same for every layer."""

    first_rows_I: torch.Tensor
    """int32: an item's first row of the step."""
    num_rows_I: torch.Tensor
    """int32: its rows, at most BLOCK_T; 0 for an item that is not in use."""
    plans_I: torch.Tensor
    """int32: its plan."""
    factors_LGS: torch.Tensor
    """float32: eta times the weight of each slot's adapter; 0 for padding."""
    is_by_norm_L: torch.Tensor
    """int32: 1 for plans that compete by contribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBuffers:
    """One layer's rows and budgets."""

    rows_LGS: torch.Tensor
    """int32: row of the pool behind each slot; 0 for padding."""
    budgets_LG: torch.Tensor
    """int32: slots that each group may keep."""


@triton.jit
def _shrink_gate_kernel(
    x_ptr,
    a_ptr,
    norms_ptr,
    first_rows_ptr,
    num_rows_ptr,
    plans_ptr,
    rows_ptr,
    factors_ptr,
    by_norm_ptr,
    budgets_ptr,
    gains_ptr,
    x_stride,
    width,
    NUM_GROUPS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USES_DOT: tl.constexpr,
    WIDENS: tl.constexpr,
):
    item = tl.program_id(0)
    group = tl.program_id(1)
    num_rows = tl.load(num_rows_ptr + item)
    if num_rows > 0:
        plan = tl.load(plans_ptr + item)
        token = tl.load(first_rows_ptr + item) + tl.arange(0, BLOCK_T)
        is_token = tl.arange(0, BLOCK_T) < num_rows
        slot = tl.arange(0, NUM_SLOTS)
        place = (plan * NUM_GROUPS + group) * NUM_SLOTS + slot
        row = tl.load(rows_ptr + place)
        is_slot = row > 0
        offsets = row.to(tl.int64) * width
        # Summed in float32 whatever the type of the model.
        h_TS = tl.zeros((BLOCK_T, NUM_SLOTS), dtype=tl.float32)
        for start in range(0, width, BLOCK_D):
            column = start + tl.arange(0, BLOCK_D)
            is_column = column < width
            a_SD = tl.load(
                a_ptr + offsets[:, None] + column[None, :], mask=is_slot[:, None] & is_column[None, :], other=0.0
            )
            x_TD = tl.load(
                x_ptr + token[:, None].to(tl.int64) * x_stride + column[None, :],
                mask=is_token[:, None] & is_column[None, :],
                other=0.0,
            )
            if USES_DOT:
                if WIDENS:
                    x_TD, a_SD = x_TD.to(tl.float32), a_SD.to(tl.float32)
                h_TS += tl.dot(x_TD, tl.trans(a_SD), input_precision="ieee")
            else:
                h_TS += tl.sum(x_TD.to(tl.float32)[:, None, :] * a_SD.to(tl.float32)[None, :, :], axis=2)
        p_TS = h_TS * tl.load(factors_ptr + place)[None, :]
        score_TS = tl.abs(p_TS)
        norms_S = tl.load(norms_ptr + row, mask=is_slot, other=0.0).to(tl.float32)
        score_TS = tl.where(tl.load(by_norm_ptr + plan) > 0, score_TS * norms_S[None, :], score_TS)
        # Not a number counts as largest, so that it reaches the output of the request that caused it; padding as least.
        score_TS = tl.where(score_TS == score_TS, score_TS, float("inf"))  # noqa: PLR0124
        score_TS = tl.where(is_slot[None, :], score_TS, -1.0)
        # The largest score of those left, the lower slot among equals, as often as the budget says.
        is_kept_TS = tl.zeros((BLOCK_T, NUM_SLOTS), dtype=tl.int32)
        for _ in range(tl.load(budgets_ptr + plan * NUM_GROUPS + group)):
            best_T = tl.argmax(score_TS, axis=1, tie_break_left=True)
            is_best_TS = slot[None, :] == best_T[:, None]
            is_kept_TS = tl.where(is_best_TS & (score_TS >= 0.0), 1, is_kept_TS)
            score_TS = tl.where(is_best_TS, -1.0, score_TS)
        gains_TS = tl.where(is_kept_TS > 0, p_TS, 0.0)
        out = (token[:, None].to(tl.int64) * NUM_GROUPS + group) * NUM_SLOTS + slot[None, :]
        tl.store(gains_ptr + out, gains_TS, mask=is_token[:, None])


@triton.jit
def _expand_kernel(
    gains_ptr,
    b_ptr,
    first_rows_ptr,
    num_rows_ptr,
    plans_ptr,
    rows_ptr,
    y_ptr,
    y_stride,
    height,
    NUM_GROUPS: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    USES_DOT: tl.constexpr,
    WIDENS: tl.constexpr,
):
    item = tl.program_id(0)
    num_rows = tl.load(num_rows_ptr + item)
    if num_rows > 0:
        plan = tl.load(plans_ptr + item)
        token = tl.load(first_rows_ptr + item) + tl.arange(0, BLOCK_T)
        is_token = tl.arange(0, BLOCK_T) < num_rows
        slot = tl.arange(0, NUM_SLOTS)
        column = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
        is_column = column < height
        sums_TO = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
        for group in range(NUM_GROUPS):
            places = (token[:, None].to(tl.int64) * NUM_GROUPS + group) * NUM_SLOTS + slot[None, :]
            gains_TS = tl.load(gains_ptr + places, mask=is_token[:, None], other=0.0)
            # Not-a-number differs from 0, as it must: its row is loaded and the request ends with an error.
            is_kept = tl.sum((gains_TS != 0.0).to(tl.int32), axis=0) > 0
            row = tl.load(rows_ptr + (plan * NUM_GROUPS + group) * NUM_SLOTS + slot)
            b_SO = tl.load(
                b_ptr + row[:, None].to(tl.int64) * height + column[None, :],
                mask=is_kept[:, None] & is_column[None, :],
                other=0.0,
            )
            if USES_DOT:
                if WIDENS:
                    b_SO = b_SO.to(tl.float32)
                sums_TO += tl.dot(gains_TS.to(b_SO.dtype), b_SO, input_precision="ieee")
            else:
                sums_TO += tl.sum(gains_TS[:, :, None] * b_SO.to(tl.float32)[None, :, :], axis=1)
        at = y_ptr + token[:, None].to(tl.int64) * y_stride + column[None, :]
        mask = is_token[:, None] & is_column[None, :]
        y_TO = tl.load(at, mask=mask, other=0.0)
        tl.store(at, (y_TO.to(tl.float32) + sums_TO).to(y_TO.dtype), mask=mask)


def roc_shrink_gate(
    x_TD: torch.Tensor,
    a_ND: torch.Tensor,
    norms_N: torch.Tensor,
    items: ItemBuffers,
    layer: LayerBuffers,
    gains_TGS: torch.Tensor,
    *,
    block_tokens: int,
) -> None:
    """Write the gains `eta w (a . x)` of the slots that act, 0 for the others.

    Args:
        x_TD: the layer's input; rows of no item are not read.
        a_ND: the pool's down-vectors.
        norms_N: norms of its up-vectors.
        items: which rows have which plan.
        layer: the layer's rows and budgets.
        gains_TGS: float32, filled in for the rows of the items.
        block_tokens: BLOCK_T: 1 for decode tokens, at least 16 for pieces of prompts.
    """
    _, num_groups, num_slots = layer.rows_LGS.shape
    grid = (items.num_rows_I.shape[0], num_groups)
    _shrink_gate_kernel[grid](
        x_TD,
        a_ND,
        norms_N,
        items.first_rows_I,
        items.num_rows_I,
        items.plans_I,
        layer.rows_LGS,
        items.factors_LGS,
        items.is_by_norm_L,
        layer.budgets_LG,
        gains_TGS,
        x_TD.stride(0),
        x_TD.shape[1],
        NUM_GROUPS=num_groups,
        NUM_SLOTS=num_slots,
        BLOCK_T=block_tokens,
        BLOCK_D=_block_width(block_tokens),
        USES_DOT=block_tokens >= MIN_GROUP_SLOTS,
        WIDENS=_IS_INTERPRETED,
        num_warps=4,
    )


def roc_expand(
    gains_TGS: torch.Tensor,
    b_NO: torch.Tensor,
    items: ItemBuffers,
    layer: LayerBuffers,
    y_TO: torch.Tensor,
    *,
    block_tokens: int,
) -> None:
    """Add the kept up-vectors, times their gains, to `y` in place.

    Args:
        gains_TGS: what `roc_shrink_gate` wrote.
        b_NO: the pool's up-vectors.
        items: which rows have which plan.
        layer: the layer's rows.
        y_TO: what the base layer made; rows of no item stay as they are.
        block_tokens: as in `roc_shrink_gate`.
    """
    _, num_groups, num_slots = layer.rows_LGS.shape
    height = y_TO.shape[1]
    block_columns = 128 if block_tokens == 1 else 64
    grid = (items.num_rows_I.shape[0], triton.cdiv(height, block_columns))
    _expand_kernel[grid](
        gains_TGS,
        b_NO,
        items.first_rows_I,
        items.num_rows_I,
        items.plans_I,
        layer.rows_LGS,
        y_TO,
        y_TO.stride(0),
        height,
        NUM_GROUPS=num_groups,
        NUM_SLOTS=num_slots,
        BLOCK_T=block_tokens,
        BLOCK_O=block_columns,
        USES_DOT=block_tokens >= MIN_GROUP_SLOTS,
        WIDENS=_IS_INTERPRETED,
        num_warps=4,
    )


def _block_width(block_tokens: int) -> int:
    """Columns of `a` and `x` summed at a time: long where few tokens share them, short where tiles are tall."""
    return 256 if block_tokens == 1 else 64
