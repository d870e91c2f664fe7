from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.worker.models.attention_product import AttentionRule, attention_product, position_bias, split_runs

_sequences = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 1000)), min_size=1, max_size=20)


def _cost(places: list[int], lengths: list[int], runs: list[slice]) -> int:
    return sum((places[run.stop - 1] - places[run.start] + 1) * max(lengths[run]) + 256 for run in runs)


class TestRuns:
    @given(_sequences)
    def test_they_cover_all_and_cost_no_more_than_singles_or_one(self, sequences) -> None:
        places = torch.tensor([step for step, _ in sequences]).cumsum(0).tolist()
        lengths = [length for _, length in sequences]
        runs = split_runs(places, lengths)
        assert [idx for run in runs for idx in range(run.start, run.stop)] == list(range(len(places)))
        assert _cost(places, lengths, runs) <= _cost(
            places, lengths, [slice(idx, idx + 1) for idx in range(len(places))]
        )

    def test_neighbours_of_one_length_are_one_run(self) -> None:
        assert split_runs(range(8), [300] * 8) == [slice(0, 8)]

    def test_a_long_one_is_read_alone(self) -> None:
        assert split_runs(range(8), [20] * 4 + [900] + [20] * 3) == [slice(0, 4), slice(4, 5), slice(5, 8)]

    def test_a_wide_gap_divides(self) -> None:
        assert split_runs([0, 1, 9, 10], [100] * 4) == [slice(0, 2), slice(2, 4)]
        assert split_runs([0, 1, 3, 4], [100] * 4) == [slice(0, 4)]

    def test_nothing_is_no_run(self) -> None:
        assert split_runs([], []) == []


class TestBias:
    @given(
        last=st.lists(st.integers(0, 9), min_size=1, max_size=4),
        first=st.integers(0, 5),
        window=st.none() | st.integers(1, 12),
    )
    def test_a_token_sees_itself_and_its_window(self, last, first, window) -> None:
        bias = position_bias(torch.tensor(last), first=first, stop=10, window=window, dtype=torch.float32)
        for row, position in zip(bias, last, strict=True):
            begin = 0 if window is None else position - window + 1
            visible = [grid for grid in range(first, 10) if begin <= grid <= position]
            assert (torch.nonzero(row == 0).flatten() + first).tolist() == visible
            assert row[row != 0].isneginf().all()


class TestProduct:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("softcap", [None, 3.0])
    def test_every_type_gives_its_own(self, dtype, softcap) -> None:
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(2, 6, 5, 8, generator=generator, dtype=torch.float64)
        keys, values = (torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        last = torch.tensor([2, 3, 4, 5, 6])
        rule = AttentionRule(scaling=0.4, softcap=softcap)
        found = attention_product(
            query.to(dtype),
            keys.to(dtype),
            values.to(dtype),
            rule,
            bias=position_bias(last, first=0, stop=7, window=4, dtype=dtype),
        )
        scores = query @ keys.repeat_interleave(2, dim=1).transpose(-1, -2) * 0.4
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        grid = torch.arange(7)
        is_hidden = (grid > last[:, None]) | (grid <= last[:, None] - 4)
        expected = scores.masked_fill(is_hidden, float("-inf")).softmax(-1) @ values.repeat_interleave(2, dim=1)
        assert found.dtype is dtype
        tolerance = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
