"""The attention of a decode-only step in buffers of fixed size: what a captured graph reads and writes.

Shapes: B rows of the graph, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import torch

from services.worker.models.attention_product import AttentionRule
from services.worker.models.paged_attention import PagedAttentionStep, PageStore
from services.worker.models.varlen_attention import VarlenAttention, VarlenRows


class StaticDecodeStep:
    """Stands in for `PagedAttentionStep` while a graph is captured, and is filled from one before it is replayed.

    Rows beyond a step's own write to the scratch page and read from it: graphs have fixed sizes, caches have owners.

    Args:
        store: the cache.
        num_rows: B.
        max_positions: of the longest sequence.
        page_size: positions of a page.
        scratch_page: a page that belongs to nobody and may hold anything.
        varlen: the kernel.
        device: of the model.
    """

    def __init__(
        self,
        store: PageStore,
        *,
        num_rows: int,
        max_positions: int,
        page_size: int,
        scratch_page: int,
        varlen: VarlenAttention,
        device: torch.device,
    ) -> None:
        self._store = store
        self._varlen = varlen
        self._scratch_page = scratch_page
        self._scratch_place = scratch_page * page_size
        width = -(-max_positions // page_size)
        self._places = torch.full((num_rows,), self._scratch_place, dtype=torch.int64, device=device)
        counts = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self._rows = VarlenRows(
            query_ends=counts,
            key_ends=counts.clone(),
            num_positions=torch.ones(num_rows, dtype=torch.int32, device=device),
            block_tables=torch.full((num_rows, width), scratch_page, dtype=torch.int32, device=device),
            max_query=1,
            # The launch depends on it, so it is that of any step.
            max_positions=max_positions,
        )

    def load(self, step: PagedAttentionStep) -> None:
        """Take over a decode-only step of at most B rows."""
        rows = step.varlen_rows
        assert rows is not None, "graphs are for steps that the kernel attends for"
        size, width = rows.block_tables.shape
        self._places.fill_(self._scratch_place)
        self._places[:size] = step.places
        self._rows.num_positions.fill_(1)
        self._rows.num_positions[:size] = rows.num_positions
        torch.cumsum(self._rows.num_positions, 0, out=self._rows.key_ends[1:])
        self._rows.block_tables.fill_(self._scratch_page)
        self._rows.block_tables[:size, :width] = rows.block_tables

    def attend(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule
    ) -> torch.Tensor:
        """See `AttentionStep`."""
        keys, values = self._store.keys(layer_idx), self._store.values(layer_idx)
        keys.view(-1, *keys.shape[2:]).index_copy_(0, self._places, key.transpose(0, 1))
        values.view(-1, *values.shape[2:]).index_copy_(0, self._places, value.transpose(0, 1))
        return self._varlen(query.transpose(0, 1).contiguous(), keys, values, self._rows, rule)
