from __future__ import annotations

import numpy as np
import pytest

from hilora.covariance import ResidualSums, StackedSamples, fit_within_covariance
from hilora.empirical_bayes import fit_pooled_eb
from hilora.pool_statistics import PoolStatistics
from hilora.pooled_gaussian import fit_pooled, fit_whitened_space
from tests.builders.profiles import clustered_samples


class TestWhitenedSpace:
    @pytest.mark.parametrize("num_adapters", [1, 2, 5, 6, 7, 30])
    def test_coordinates_and_remainder_hold_the_whole_distance(self, num_adapters):
        statistics = PoolStatistics.of(clustered_samples(num_samples=[4] * num_adapters, dimension=6))
        space = fit_whitened_space(statistics)
        z_NE = np.random.default_rng(0).normal(size=(3, 6))
        y, rest = space.locate(z_NE)
        assert y.shape == (3, min(num_adapters - 1, 6))
        white = (z_NE - statistics.means_LE.mean(axis=0)) @ space.within.whitening_EE.T
        np.testing.assert_allclose((y**2).sum(axis=1) + rest, (white**2).sum(axis=1))

    def test_the_scatter_is_the_variance_of_the_means_along_each_axis(self):
        statistics = PoolStatistics.of(clustered_samples(num_samples=[4] * 9, dimension=6))
        space = fit_whitened_space(statistics)
        y, _ = space.locate(statistics.means_LE)
        np.testing.assert_allclose(np.cov(y, rowvar=False), np.diag(space.scatter_K), atol=1e-9)
        assert (np.diff(space.scatter_K) <= 1e-12).all()

    def test_coordinates_are_those_of_locating(self):
        blocks = clustered_samples(num_samples=[4] * 9, dimension=6)
        space = fit_whitened_space(PoolStatistics.of(blocks))
        np.testing.assert_allclose(space.coordinates(blocks[3]), space.locate(blocks[3])[0], atol=1e-12)

    def test_some_adapters_alone_have_the_density_they_have_among_all(self):
        fitted = fit_pooled_eb(clustered_samples(num_samples=[4, 9, 4, 2, 4], dimension=6))
        y, rest = fitted.space.locate(np.random.default_rng(3).normal(size=6))
        some = np.array([3, 0, 4])
        np.testing.assert_allclose(
            fitted.gaussians.log_density_of(some, y, float(rest)), fitted.gaussians.log_density(y, rest)[some]
        )


class TestPooled:
    @pytest.mark.parametrize("counts", [[5, 5, 5], [2, 9, 4], [6], [3] * 12])
    def test_it_is_a_gaussian_around_each_mean(self, counts):
        blocks = clustered_samples(num_samples=counts, dimension=7)
        pooled = fit_pooled(blocks)
        whitening = fit_within_covariance(ResidualSums.of(StackedSamples.of(blocks))).whitening_EE
        z_NE = np.random.default_rng(1).normal(size=(4, 7))
        for place, block in enumerate(blocks):
            white = (z_NE - block.mean(axis=0, dtype=np.float64)) @ whitening.T
            expected = -0.5 * (white**2).sum(axis=1) - 3.5 * np.log(2 * np.pi) + np.linalg.slogdet(whitening)[1]
            np.testing.assert_allclose(pooled.log_likelihood(z_NE)[:, place], expected, rtol=1e-9)

    def test_one_text_at_a_time_is_the_same(self):
        pooled = fit_pooled(clustered_samples(num_samples=[5, 3]))
        z_NE = np.random.default_rng(2).normal(size=(3, 24))
        one_by_one = np.stack([pooled.log_likelihood(z_E) for z_E in z_NE])
        np.testing.assert_allclose(pooled.log_likelihood(z_NE), one_by_one)
