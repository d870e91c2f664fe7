from __future__ import annotations

import pytest
import torch

from services.worker.kernels.native_ops import can_attend, decode_attention
from services.worker.models.attention_product import AttentionRule
from tests.builders.kv import dense_attention

_MAX_LEN = 70


def _attend(
    query_BHE: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: list[tuple[int, int, int]],
    rule: AttentionRule,
) -> torch.Tensor:
    slots, first, until = torch.tensor(places, dtype=torch.int64).T.contiguous()
    return decode_attention(
        query_BHE,
        keys,
        values,
        slots_B=slots,
        first_B=first,
        until_B=until,
        scaling=rule.scaling,
        softcap=rule.softcap,
    )


def _cache(
    num_slots: int, num_key_heads: int, head_dim: int, *, size: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(head_dim)
    shape = (num_slots, num_key_heads, _MAX_LEN, head_dim)
    return size * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


class TestAgainstAttentionByTheBook:
    @pytest.mark.parametrize("softcap", [None, 2.0])
    @pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128])
    @pytest.mark.parametrize("heads_per_key", [1, 2, 3, 4, 5, 7, 8])
    def test_ragged_lengths_in_any_order_of_slots(self, heads_per_key, head_dim, softcap) -> None:
        keys, values = _cache(4, 2, head_dim)
        query = torch.randn(3, 2 * heads_per_key, head_dim, generator=torch.Generator().manual_seed(1))
        rule = AttentionRule(scaling=head_dim**-0.5, softcap=softcap)
        places = [(2, 0, 1), (0, 3, 40), (3, 0, _MAX_LEN)]
        found = _attend(query, keys, values, places, rule)
        for row, (slot, first, until) in enumerate(places):
            own = slice(first, until)
            expected = dense_attention(
                query[row : row + 1], keys[slot, :, own].transpose(0, 1), values[slot, :, own].transpose(0, 1), rule
            )
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-5, atol=1e-5)

    def test_scores_far_apart(self) -> None:
        """Most weights vanish; the rest must not lose anything."""
        keys, values = _cache(1, 1, 16, size=60.0)
        query, rule = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(2)), AttentionRule(scaling=1.0)
        expected = dense_attention(
            query.double(), keys[0].double().transpose(0, 1), values[0].double().transpose(0, 1), rule
        )
        found = _attend(query, keys, values, [(0, 0, _MAX_LEN)], rule)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


class TestRows:
    @pytest.mark.parametrize("num_threads", [1, 2])
    def test_a_token_does_not_depend_on_the_others(self, num_threads) -> None:
        keys, values = _cache(3, 4, 64)
        query, rule = torch.randn(3, 8, 64), AttentionRule(scaling=0.125)
        places = [(0, 0, 64), (1, 0, 9), (2, 5, 33)]
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            together = _attend(query, keys, values, places, rule)
            for row, place in enumerate(places):
                assert torch.equal(_attend(query[row : row + 1], keys, values, [place], rule)[0], together[row])
        finally:
            torch.set_num_threads(before)

    def test_a_nan_stays_where_it_is(self) -> None:
        keys, values = _cache(2, 1, 16)
        keys[1, 0, 7, 3] = float("nan")
        found = _attend(torch.ones(2, 1, 16), keys, values, [(0, 0, 20), (1, 0, 20)], AttentionRule(scaling=0.25))
        assert found[0].isfinite().all()
        assert found[1].isnan().all()

    def test_an_infinite_score_is_not_hidden(self) -> None:
        keys, values = _cache(1, 1, 16)
        keys[0, 0, 4] = float("inf")
        found = _attend(torch.ones(1, 1, 16), keys, values, [(0, 0, 20)], AttentionRule(scaling=0.25))
        assert found.isnan().all()


class TestWhatItTakes:
    @pytest.mark.parametrize(
        ("keys", "is_taken"),
        [
            (torch.zeros(2, 1, 8, 32), True),
            (torch.zeros(2, 1, 8, 24), False),
            (torch.zeros(2, 1, 8, 32, dtype=torch.float64), False),
            (torch.zeros(2, 8, 3, 32).transpose(1, 2), False),
        ],
        ids=["float32", "odd width", "float64", "strided"],
    )
    def test_caches(self, keys, is_taken) -> None:
        assert can_attend(keys) is is_taken
