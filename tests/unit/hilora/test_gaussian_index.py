from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.empirical_bayes import fit_pooled_eb
from hilora.gaussian_index import (
    DenseGaussianIndex,
    ExtendedGaussianIndex,
    highest,
    log_sum_exp,
    log_sum_exp_of_many,
)
from hilora.pool_statistics import PoolStatistics
from tests.builders.profiles import clustered_samples


class TestHighest:
    @settings(deadline=None, max_examples=50)
    @given(values=st.lists(st.integers(-3, 3), max_size=30), num_results=st.integers(-1, 35))
    def test_it_is_the_head_of_a_stable_sort(self, values, num_results):
        values_L = np.array(values, dtype=np.float64)
        expected = np.argsort(-values_L, kind="stable")[: max(num_results, 0)]
        np.testing.assert_array_equal(highest(values_L, num_results), expected)


class TestSumOfMany:
    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 1000), spread=st.sampled_from([1e-3, 1.0, 40.0, 1e4]), temperature=st.floats(0.05, 50.0))
    def test_it_is_the_sum_in_seven_digits(self, seed, spread, temperature):
        scores_L = -300.0 + spread * np.random.default_rng(seed).standard_normal(3000)
        scores_L[::7] = -np.inf
        expected = log_sum_exp(scores_L / temperature)
        assert log_sum_exp_of_many(scores_L, temperature=temperature) == pytest.approx(expected, rel=1e-9, abs=1e-6)

    @pytest.mark.parametrize("num_scores", [0, 5])
    def test_of_nobody_it_is_nothing(self, num_scores):
        assert log_sum_exp_of_many(np.full(num_scores, -np.inf), temperature=2.0) == -np.inf


class TestExtension:
    def test_newcomers_are_found_as_the_fit_places_them(self):
        blocks = clustered_samples(num_samples=[9, 5, 9, 9, 3, 7, 9], dimension=12)
        fitted = fit_pooled_eb(blocks[:5])
        late = PoolStatistics.of(blocks[5:])
        newcomers = fitted.predict(late.means_LE, late.num_samples_L)
        index = ExtendedGaussianIndex(DenseGaussianIndex(fitted.gaussians), newcomers)
        assert index.num_adapters == 7
        for z_E in (blocks[6][0], blocks[2][1]):
            y, rest = fitted.space.locate(z_E)
            scores = np.concatenate([fitted.gaussians.log_density(y, rest), newcomers.log_density(y, rest)])
            scores[[1, 5]] = -np.inf
            found = index.search(y, float(rest), num_results=4, temperature=3.0, excluded=np.array([1, 5]))
            np.testing.assert_array_equal(found.idx_C, np.argsort(-scores, kind="stable")[:4])
            np.testing.assert_allclose(found.log_density_C, scores[found.idx_C])
            assert found.log_partition == pytest.approx(log_sum_exp(scores / 3.0))

    def test_an_adapter_of_the_fit_would_be_placed_where_it_is(self):
        blocks = clustered_samples(num_samples=[9, 5, 9], dimension=12)
        fitted = fit_pooled_eb(blocks)
        again = PoolStatistics.of(blocks)
        placed = fitted.predict(again.means_LE, again.num_samples_L)
        np.testing.assert_allclose(placed.means_LK, fitted.gaussians.means_LK, atol=1e-12)
        np.testing.assert_allclose(placed.variances_GK, fitted.gaussians.variances_GK)
