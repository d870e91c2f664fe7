from __future__ import annotations

import inspect
from typing import Any

import torch

from services.worker.models.attention_product import AttentionRule
from services.worker.models.varlen_attention import (
    VarlenRows,
    adapt_varlen_attention,
    find_varlen_attention,
    reads_pages,
)
from tests.builders.kv import varlen_reference

_ROWS = VarlenRows.build(
    num_tokens=[1, 3],
    num_positions=[5, 3],
    block_tables=[[4, 2, 9], [7]],
    page_size=4,
    null_page=0,
    device=torch.device("cpu"),
)


class TestRows:
    def test_they_count_as_the_kernel_does(self) -> None:
        assert _ROWS.query_ends.tolist() == [0, 1, 4]
        assert _ROWS.key_ends.tolist() == [0, 5, 8]
        assert _ROWS.num_positions.tolist() == [5, 3]
        assert _ROWS.block_tables.tolist() == [[4, 2], [7, 0]]
        assert (_ROWS.max_query, _ROWS.max_positions) == (3, 5)


class TestAdaptation:
    def test_a_kernel_that_knows_no_pages_is_none(self) -> None:
        def before(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, seqused_k):
            raise NotImplementedError

        assert adapt_varlen_attention(before) is None
        assert adapt_varlen_attention(varlen_reference) is not None

    def test_a_window_counts_the_token_itself(self) -> None:
        calls: list[dict[str, Any]] = []

        def kernel(*_, scale, window_size, seqused_k, block_table):
            calls.append({"scale": scale, "window_size": window_size})
            return torch.empty(0)

        attend = adapt_varlen_attention(kernel)
        assert attend is not None
        nothing = torch.empty(0)
        attend(nothing, nothing, nothing, _ROWS, AttentionRule(scaling=0.5))
        attend(nothing, nothing, nothing, _ROWS, AttentionRule(scaling=0.25, window=7))
        assert calls == [{"scale": 0.5, "window_size": (-1, 0)}, {"scale": 0.25, "window_size": (6, 0)}]


class TestSearch:
    def test_a_cpu_has_none(self) -> None:
        assert find_varlen_attention(dtype=torch.bfloat16, head_dim=64, device=torch.device("cpu")) is None

    def test_types_and_heads_it_cannot_read_have_none(self) -> None:
        cuda = torch.device("cuda")
        assert find_varlen_attention(dtype=torch.float32, head_dim=64, device=cuda) is None
        assert find_varlen_attention(dtype=torch.bfloat16, head_dim=512, device=cuda) is None
        assert find_varlen_attention(dtype=torch.bfloat16, head_dim=20, device=cuda) is None

    def test_a_kernel_is_tried(self) -> None:
        def read_only_the_first_page(*args, block_table, **options):
            return varlen_reference(*args, block_table=block_table[:, :1].expand_as(block_table), **options)

        def refuse(*_, **__):
            raise RuntimeError("no kernel image for this device")

        def tried(kernel) -> bool:
            names = inspect.signature(varlen_reference)
            kernel.__signature__ = names
            attend = adapt_varlen_attention(kernel)
            assert attend is not None
            return reads_pages(attend, dtype=torch.float32, head_dim=8, device=torch.device("cpu"))

        assert tried(varlen_reference)
        assert not tried(read_only_the_first_page)
        assert not tried(refuse)
