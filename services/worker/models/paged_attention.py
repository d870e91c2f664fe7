"""Attention over pages: keys and values of a sequence lie wherever its block table says.

Shapes: T packed tokens of a step, P pages, Z positions of a page, K key-value heads, H query heads, G = H / K,
D head dimension, S sequences one product reads, L positions read.

With `varlen_attn` one kernel attends for the whole step. Without it, pages are gathered and read as padded products:
decode tokens of similar length together, a prefill chunk by itself. That is correct everywhere, and slower than slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from services.worker.models.attention_product import AttentionRule, attention_product, position_bias, split_runs
from services.worker.models.varlen_attention import VarlenAttention, VarlenRows

NULL_PAGE = 0
"""A page of zeros that belongs to nobody: it fills block tables, and what is hidden must still be finite."""


class PageStore(Protocol):
    """Where keys and values of all positions live."""

    def keys(self, layer_idx: int) -> torch.Tensor:
        """Keys of a layer `[P, Z, K, D]`, contiguous, written in place."""
        ...

    def values(self, layer_idx: int) -> torch.Tensor:
        """Values of a layer `[P, Z, K, D]`, contiguous, written in place."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedRows:
    """Consecutive tokens of one sequence: a decode token or a prefill chunk."""

    row: int
    """Its first row among the step's packed tokens."""
    num_tokens: int
    start: int
    """Position of its first token; everything before is in the cache."""
    pages: Sequence[int]
    """Block table of its sequence: at least the pages up to the last token."""

    @property
    def stop(self) -> int:
        """One past the position of its last token."""
        return self.start + self.num_tokens


@dataclass(kw_only=True, slots=True)
class _Group:
    """Sequences that are read as one product: all with one token, or a single one with many."""

    members: tuple[PagedRows, ...]
    rows: torch.Tensor
    """`[S * n]`: the tokens' rows."""
    reads: dict[int, _Read] = field(default_factory=dict)
    """By window, 0 for none."""

    @property
    def shortest(self) -> int:
        """Positions that the first token with the fewest may look back on."""
        return min(member.start for member in self.members) + 1

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return max(member.stop for member in self.members)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    pages: torch.Tensor
    """`[S * pages of the longest]`: what is gathered."""
    span: slice
    """What is read of the gathered positions."""
    bias: torch.Tensor | None


class PagedAttentionStep:
    """One step over pages.

    Args:
        store: the cache.
        decodes: the decode tokens, in row order from row 0.
        chunks: the prefill chunks, which are the other rows, in row order.
        page_size: Z.
        device: of the model.
        varlen: the kernel; None gathers.
    """

    def __init__(
        self,
        store: PageStore,
        *,
        decodes: Sequence[PagedRows],
        chunks: Sequence[PagedRows],
        page_size: int,
        device: torch.device,
        varlen: VarlenAttention | None = None,
    ) -> None:
        self._store = store
        self._page_size = page_size
        self._device = device
        self._varlen = varlen
        sequences = (*decodes, *chunks)
        self._places = self._int64([place for rows in sequences for place in _places(rows, page_size)])
        self._varlen_rows = None
        if varlen is not None:
            self._varlen_rows = VarlenRows.build(
                num_tokens=[rows.num_tokens for rows in sequences],
                num_positions=[rows.stop for rows in sequences],
                block_tables=[rows.pages for rows in sequences],
                page_size=page_size,
                null_page=NULL_PAGE,
                device=device,
            )
        self._decodes, self._chunks = tuple(decodes), tuple(chunks)
        self._groups: tuple[_Group, ...] | None = None

    @property
    def is_decode_only(self) -> bool:
        """Whether every token is a sequence's newest one."""
        return bool(self._decodes) and not self._chunks

    @property
    def places(self) -> torch.Tensor:
        """`[T]`: where each token's key and value go among all positions of the cache."""
        return self._places

    @property
    def varlen_rows(self) -> VarlenRows | None:
        """The step as the kernel wants it; None without the kernel."""
        return self._varlen_rows

    def attend(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """Write the step's keys `[K, T, D]` and values, attend with the query `[H, T, D]`: `[T, H, D]`."""
        keys, values = self._store.keys(layer_idx), self._store.values(layer_idx)
        keys.view(-1, *keys.shape[2:]).index_copy_(0, self._places, key.transpose(0, 1))
        values.view(-1, *values.shape[2:]).index_copy_(0, self._places, value.transpose(0, 1))
        query_THD = query.transpose(0, 1)
        if self._varlen is not None and self._varlen_rows is not None and rule.softcap is None:
            return self._varlen(query_THD.contiguous(), keys, values, self._varlen_rows, rule)
        out = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        for group in self._grouped():
            out[group.rows] = self._attend_group(group, query_THD[group.rows], keys, values, rule)
        return out

    def _grouped(self) -> tuple[_Group, ...]:
        if self._groups is None:
            decodes = sorted(self._decodes, key=lambda rows: rows.stop)
            runs = split_runs(range(len(decodes)), [rows.stop for rows in decodes])
            members = [tuple(decodes[run]) for run in runs] + [(chunk,) for chunk in self._chunks]
            self._groups = tuple(_Group(members=group, rows=self._int64(_rows(group))) for group in members)
        return self._groups

    def _attend_group(
        self, group: _Group, query_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        read = self._read(group, rule.window, query_THD.dtype)
        size, num_heads = len(group.members), keys.shape[2]
        gathered_keys = _gather(keys, read, size)
        gathered_values = _gather(values, read, size)
        if len(query_THD) == size:
            # One token each: the G heads that share a key are queries of one product.
            query = query_THD.reshape(size, num_heads, -1, query_THD.shape[-1])
            out = attention_product(query, gathered_keys, gathered_values, rule, bias=read.bias)
            return out.reshape(query_THD.shape)
        query = query_THD.transpose(0, 1)[None]
        return attention_product(query, gathered_keys, gathered_values, rule, bias=read.bias)[0].transpose(0, 1)

    def _read(self, group: _Group, window: int | None, dtype: torch.dtype) -> _Read:
        if (window or 0) not in group.reads:
            stop = group.longest
            first = 0 if window is None else max(0, group.shortest - window)
            first_page = first // self._page_size
            num_pages = -(-stop // self._page_size) - first_page
            pages: list[int] = []
            for member in group.members:
                own = list(member.pages[first_page : -(-member.stop // self._page_size)])
                pages.extend(own + [NULL_PAGE] * (num_pages - len(own)))
            last = self._int64([pos for member in group.members for pos in range(member.start, member.stop)])
            bias = None
            if group.shortest < stop:
                bias = position_bias(last, first=first, stop=stop, window=window, dtype=dtype)
                if len(group.members) > 1:
                    bias = bias[:, None, None, :]
            offset = first - first_page * self._page_size
            group.reads[window or 0] = _Read(
                pages=self._int64(pages), span=slice(offset, offset + stop - first), bias=bias
            )
        return group.reads[window or 0]

    def _int64(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _places(rows: PagedRows, page_size: int) -> list[int]:
    """Where each token goes among all positions of the cache."""
    return [
        rows.pages[position // page_size] * page_size + position % page_size
        for position in range(rows.start, rows.stop)
    ]


def _rows(group: Sequence[PagedRows]) -> list[int]:
    return [row for member in group for row in range(member.row, member.row + member.num_tokens)]


def _gather(cache: torch.Tensor, read: _Read, size: int) -> torch.Tensor:
    """`[S, K, L, D]` of a layer's pages."""
    _, page_size, num_heads, head_dim = cache.shape
    num_positions = len(read.pages) // size * page_size
    gathered = cache.index_select(0, read.pages).view(size, num_positions, num_heads, head_dim)
    return gathered[:, read.span].transpose(1, 2)
