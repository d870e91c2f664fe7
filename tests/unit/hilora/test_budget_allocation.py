from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.budget_allocation import (
    candidate_weights,
    largest_remainder_counts,
    multinomial_counts,
    round_half_up,
    total_budget,
    variance_factor,
)
from hilora.routing_settings import EtaRule, WeightRule


@st.composite
def allocations(draw: st.DrawFn) -> tuple[list[int], np.ndarray, int]:
    """Ranks, shares and a budget that fits."""
    ranks = draw(st.lists(st.integers(1, 16), min_size=1, max_size=6))
    shares = draw(st.lists(st.floats(0.0, 1.0), min_size=len(ranks), max_size=len(ranks)))
    return ranks, np.array(shares), draw(st.integers(0, sum(ranks)))


class TestTotal:
    @pytest.mark.parametrize(
        ("ranks", "gamma", "follow", "budget"),
        [
            ([8, 8, 8], 0.4, False, 10),
            ([8], 0.4, False, 3),
            ([8], 0.4, True, 8),
            ([8, 8], 0.4, True, 8),
            ([8, 8, 8], 0.4, True, 10),
            ([4, 16], 0.1, True, 10),
            ([1], 0.1, False, 1),
            ([5], 0.5, False, 3),
            ([8, 8], 1.0, False, 16),
        ],
    )
    def test_e5(self, ranks, gamma, follow, budget):
        assert total_budget(ranks, gamma=gamma, confidence_following=follow) == budget

    def test_halves_go_up_and_not_to_the_even_number(self):
        assert [round_half_up(value) for value in (0.5, 1.5, 2.5, 2.4)] == [1, 2, 3, 2]


class TestLargestRemainder:
    @settings(deadline=None)
    @given(allocation=allocations())
    def test_counts_sum_to_the_budget_within_the_ranks(self, allocation):
        ranks, shares, budget = allocation
        counts = largest_remainder_counts(ranks, shares_C=shares, budget=budget)
        assert sum(counts) == budget
        assert all(0 <= count <= rank for count, rank in zip(counts, ranks, strict=True))
        if budget >= len(ranks):
            assert all(count >= 1 for count in counts)

    @pytest.mark.parametrize(
        ("ranks", "shares", "budget", "counts"),
        [
            ([8, 8], [0.5, 0.5], 8, (4, 4)),
            ([8, 8], [0.75, 0.25], 8, (6, 2)),
            ([8, 8, 8], [0.5, 0.3, 0.2], 10, (5, 3, 2)),
            ([8, 8, 8], [1.0, 1.0, 1.0], 10, (4, 3, 3)),
            # The cap of the first sends its surplus on.
            ([4, 8, 8], [0.8, 0.1, 0.1], 12, (4, 4, 4)),
            # A share of nothing still gets one.
            ([8, 8], [1.0, 0.0], 8, (7, 1)),
            ([8, 8], [0.0, 0.0], 4, (2, 2)),
            # Fewer ROCs than candidates: the first ones.
            ([8, 8, 8], [0.4, 0.3, 0.3], 2, (1, 1, 0)),
            ([1, 1, 1], [0.0, 1.0, 0.0], 1, (1, 0, 0)),
        ],
    )
    def test_examples(self, ranks, shares, budget, counts):
        assert largest_remainder_counts(ranks, shares_C=np.array(shares), budget=budget) == counts


class TestMultinomial:
    @settings(deadline=None)
    @given(allocation=allocations(), seed=st.integers(0, 1000))
    def test_counts_sum_to_the_budget_within_the_ranks(self, allocation, seed):
        ranks, shares, budget = allocation
        counts = multinomial_counts(ranks, shares_C=shares, budget=budget, rng=np.random.default_rng(seed))
        assert sum(counts) == budget
        assert all(0 <= count <= rank for count, rank in zip(counts, ranks, strict=True))

    def test_the_seed_decides(self):
        def draw(seed):
            rng = np.random.default_rng(seed)
            return multinomial_counts([16] * 4, shares_C=np.ones(4), budget=20, rng=rng)

        assert draw(7) == draw(7)
        assert len({draw(seed) for seed in range(20)}) > 5

    def test_draws_follow_the_shares(self):
        rng = np.random.default_rng(0)
        draws = [multinomial_counts([100, 100], shares_C=np.array([3.0, 1.0]), budget=40, rng=rng) for _ in range(200)]
        assert np.mean(draws, axis=0) == pytest.approx([30, 10], abs=0.5)


class TestWeights:
    @pytest.mark.parametrize(
        ("rule", "weights"),
        [
            (WeightRule.NONE, (1.0, 1.0)),
            (WeightRule.POSTERIOR, (0.8, 0.2)),
            (WeightRule.SHARPENED, (16 / 17, 1 / 17)),
            (WeightRule.SQRT, (2 / 3, 1 / 3)),
        ],
    )
    def test_rules(self, rule, weights):
        assert candidate_weights(np.array([0.4, 0.1]), rule=rule) == pytest.approx(weights)


class TestEta:
    @pytest.mark.parametrize(
        ("rule", "eta"), [(EtaRule.NONE, 1.0), (EtaRule.SQRT, (6 / 8) ** 0.5), (EtaRule.MEAN, 0.5)]
    )
    def test_rules(self, rule, eta):
        assert variance_factor([4, 8], budget=8, rule=rule) == pytest.approx(eta)


class TestMisuse:
    @pytest.mark.parametrize("budget", [-1, 9])
    def test_a_budget_that_does_not_fit(self, budget):
        with pytest.raises(ValueError, match="does not fit"):
            largest_remainder_counts([4, 4], shares_C=np.ones(2), budget=budget)
        with pytest.raises(ValueError, match="does not fit"):
            multinomial_counts([4, 4], shares_C=np.ones(2), budget=budget, rng=np.random.default_rng(0))
