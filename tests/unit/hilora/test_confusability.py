from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.confusability import (
    bhattacharyya_distance,
    pairwise_distances,
    pairwise_error_bound,
    routed_right_bound,
    routing_error_bound,
    whitened_pairwise_distances,
)
from hilora.empirical_bayes import fit_pooled_eb
from hilora.gaussian import CovarianceFamily, fit_gaussian
from tests.builders.profiles import clustered_samples

FAMILIES = [CovarianceFamily.FULL, CovarianceFamily.DIAGONAL, CovarianceFamily.SPHERICAL]


def dense_distance(mean_i, cov_i, mean_j, cov_j) -> float:
    middle = 0.5 * (cov_i + cov_j)
    gap = mean_i - mean_j
    log_dets = [np.linalg.slogdet(cov)[1] for cov in (middle, cov_i, cov_j)]
    return gap @ np.linalg.solve(middle, gap) / 8 + 0.5 * (log_dets[0] - 0.5 * (log_dets[1] + log_dets[2]))


class TestDistance:
    @settings(deadline=None, max_examples=25)
    @given(families=st.tuples(*[st.sampled_from(FAMILIES)] * 2), seed=st.integers(0, 500), num=st.integers(1, 9))
    def test_the_low_rank_form_equals_the_dense_one(self, families, seed, num):
        blocks = clustered_samples(num_samples=[num, 5], dimension=6, seed=seed)
        first, second = (fit_gaussian(block, family=family) for block, family in zip(blocks, families, strict=True))
        expected = dense_distance(first.mean, first.covariance, second.mean, second.covariance)
        assert bhattacharyya_distance(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-8)

    def test_all_pairs_are_symmetric_with_nothing_on_the_diagonal(self):
        gaussians = [
            fit_gaussian(block, family=CovarianceFamily.FULL) for block in clustered_samples(num_samples=[4, 6, 8])
        ]
        distances_LL = pairwise_distances(gaussians)
        np.testing.assert_array_equal(distances_LL, distances_LL.T)
        assert not distances_LL.diagonal().any()
        assert (distances_LL + np.eye(3) > 0).all()

    def test_a_pools_predictive_gaussians(self):
        fitted = fit_pooled_eb(clustered_samples(num_samples=[4, 9, 4, 2], dimension=6)).gaussians
        distances_LL = whitened_pairwise_distances(fitted)
        rest = [np.full(fitted.num_rest, fitted.rest_variance_G[group]) for group in fitted.group_L]
        means = np.pad(fitted.means_LK, ((0, 0), (0, fitted.num_rest)))
        variances = [np.append(fitted.variances_GK[g], r) for g, r in zip(fitted.group_L, rest, strict=True)]
        for i in range(4):
            for j in range(4):
                expected = dense_distance(means[i], np.diag(variances[i]), means[j], np.diag(variances[j]))
                assert distances_LL[i, j] == pytest.approx(expected, abs=1e-9)


class TestBounds:
    def test_indistinguishable_tasks_are_a_coin_toss(self):
        assert pairwise_error_bound(0.0) == 0.5
        assert routed_right_bound(np.zeros((2, 2))).tolist() == [0.0, 0.0]
        assert routing_error_bound(np.zeros((2, 2))) == 0.5

    def test_distant_tasks_are_safe(self):
        distances_LL = np.full((3, 3), 50.0)
        np.fill_diagonal(distances_LL, 0.0)
        np.testing.assert_allclose(routed_right_bound(distances_LL), 1.0)
        assert routing_error_bound(distances_LL) < 1e-20

    def test_the_bound_holds_for_texts_of_the_model(self):
        rng = np.random.default_rng(0)
        means, deviation = rng.normal(size=(4, 3)) * 1.5, 1.0
        gaps = ((means[:, None] - means) ** 2).sum(axis=2)
        distances_LL = gaps / 8.0
        own = rng.integers(0, 4, size=20_000)
        z_NE = means[own] + deviation * rng.normal(size=(20_000, 3))
        routed = ((z_NE[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        assert (routed != own).mean() <= routing_error_bound(distances_LL)
        for adapter_idx, least in enumerate(routed_right_bound(distances_LL)):
            assert (routed[own == adapter_idx] == adapter_idx).mean() >= least

    def test_a_pool_of_one_cannot_err(self):
        assert routed_right_bound(np.zeros((1, 1))).tolist() == [1.0]
        assert routing_error_bound(np.zeros((1, 1))) == 0.0
