"""torch's variable-length attention over pages, where this torch has it.

Shapes: S sequences, T packed tokens, P pages, Z positions of a page, H query heads, K key-value heads, D head
dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from services.worker.models.attention_product import AttentionRule

VARLEN_PAGE_SIZE = 256
"""Flash attention reads pages of a multiple of this size."""

_NEEDED = frozenset({"scale", "window_size", "seqused_k", "block_table"})
_DTYPES = (torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class VarlenRows:
    """A step's sequences as the kernel wants them; int32, as flash attention counts."""

    query_ends: torch.Tensor
    """`[S + 1]`: 0, then where each sequence's tokens end."""
    key_ends: torch.Tensor
    """`[S + 1]`: 0, then the running sum of the sequences' positions."""
    num_positions: torch.Tensor
    """`[S]`: positions that are in the cache after this step's write."""
    block_tables: torch.Tensor
    """`[S, pages of the longest]`."""
    max_query: int
    max_positions: int

    @classmethod
    def build(
        cls,
        *,
        num_tokens: Sequence[int],
        num_positions: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        page_size: int,
        null_page: int,
        device: torch.device,
    ) -> VarlenRows:
        """From counts by sequence, in row order.

        Args:
            num_tokens: of the step; they are the last ones of the sequence.
            num_positions: of the sequence, this step's tokens included.
            block_tables: its pages, at least as many as its positions fill.
            page_size: Z.
            null_page: fills the shorter tables.
            device: of the model.
        """
        width = -(-max(num_positions) // page_size)
        tables = [[*table[:width], *[null_page] * (width - len(table[:width]))] for table in block_tables]

        def int32(numbers: Any) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=device)

        return cls(
            query_ends=int32([0, *accumulate(num_tokens)]),
            key_ends=int32([0, *accumulate(num_positions)]),
            num_positions=int32(list(num_positions)),
            block_tables=int32(tables),
            max_query=max(num_tokens),
            max_positions=max(num_positions),
        )


VarlenAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, VarlenRows, AttentionRule], torch.Tensor]
"""From the query `[T, H, D]`, a layer's keys and values `[P, Z, K, D]`, the step's rows and the rule: `[T, H, D]`."""


def find_varlen_attention(*, dtype: torch.dtype, head_dim: int, device: torch.device) -> VarlenAttention | None:
    """The kernel, or None where this torch, type, head or device has none.

    Told by the signature, not the version: `block_table` came after `varlen_attn` itself. Then by trying: which
    devices the kernel runs on is told by nothing else.
    """
    if device.type != "cuda" or dtype not in _DTYPES or head_dim > _MAX_HEAD_DIM or head_dim % 8:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    attend = adapt_varlen_attention(varlen_attn)
    if attend is None or not reads_pages(attend, dtype=dtype, head_dim=head_dim, device=device):
        return None
    return attend


def reads_pages(attend: VarlenAttention, *, dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether a kernel runs, and finds two positions of a sequence in two pages."""
    pages = torch.zeros(4, VARLEN_PAGE_SIZE, 1, head_dim, dtype=dtype, device=device)
    num_positions = VARLEN_PAGE_SIZE + 1
    rows = VarlenRows.build(
        num_tokens=[1],
        num_positions=[num_positions],
        block_tables=[[3, 1]],
        page_size=VARLEN_PAGE_SIZE,
        null_page=0,
        device=device,
    )
    values = pages.clone()
    values[3, -1] = 1
    values[1, 0] = 3
    query_THD = torch.zeros(1, 2, head_dim, dtype=dtype, device=device)
    try:
        # A window of two positions, all of one score: their mean.
        out_THD = attend(query_THD, pages, values, rows, AttentionRule(scaling=1.0, window=2))
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool(torch.allclose(out_THD, torch.full_like(out_THD, 2)))


def adapt_varlen_attention(kernel: Callable[..., Any]) -> VarlenAttention | None:
    """`kernel`, with the signature of torch's `varlen_attn`, as the paged step calls it; None if it knows no pages."""
    names = inspect.signature(kernel).parameters.keys()
    if not names >= _NEEDED:
        return None
    has_gqa_switch = "enable_gqa" in names

    def attend(
        query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: VarlenRows, rule: AttentionRule
    ) -> torch.Tensor:
        options: dict[str, Any] = {"enable_gqa": True} if has_gqa_switch else {}
        return kernel(
            query_THD,
            keys,
            values,
            rows.query_ends,
            rows.key_ends,
            rows.max_query,
            rows.max_positions,
            scale=rule.scaling,
            # The token itself is one of its window; nothing lies to the right of it.
            window_size=(-1 if rule.window is None else rule.window - 1, 0),
            seqused_k=rows.num_positions,
            block_table=rows.block_tables,
            **options,
        )

    return attend
