from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from hilora.gaussian import AdapterGaussian, CovarianceFamily, fit_gaussian

OWN_FAMILIES = [
    CovarianceFamily.FULL,
    CovarianceFamily.FULL_LEDOIT_WOLF,
    CovarianceFamily.DIAGONAL,
    CovarianceFamily.SPHERICAL,
]

quick = settings(deadline=None, max_examples=25)


def samples(*, num: int, dimension: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dimension)) * rng.uniform(0.5, 2.0, size=dimension) + rng.normal(size=dimension)


class TestLikelihood:
    @quick
    @given(
        family=st.sampled_from(OWN_FAMILIES),
        num=st.integers(1, 12),
        dimension=st.integers(1, 8),
        seed=st.integers(0, 1000),
    )
    def test_it_equals_the_dense_density(self, family, num, dimension, seed):
        gaussian = fit_gaussian(samples(num=num, dimension=dimension, seed=seed), family=family)
        z_NE = np.random.default_rng(seed + 1).normal(size=(4, dimension))
        dense = multivariate_normal(gaussian.mean, gaussian.covariance, allow_singular=True)
        expected = np.atleast_1d(dense.logpdf(z_NE))
        np.testing.assert_allclose(gaussian.log_likelihoods(z_NE), expected, rtol=1e-6, atol=1e-6)
        assert gaussian.log_likelihood(z_NE[0]) == pytest.approx(expected[0], rel=1e-6, abs=1e-6)

    def test_twenty_samples_in_many_dimensions_need_no_square_matrix(self):
        gaussian = fit_gaussian(samples(num=20, dimension=4096, seed=0), family=CovarianceFamily.FULL)
        assert gaussian.directions_KE.shape == (20, 4096)
        assert np.isfinite(gaussian.log_likelihood(np.zeros(4096)))


class TestCovariance:
    def test_full_is_the_unbiased_covariance_pulled_to_the_identity(self):
        x_ME = samples(num=15, dimension=4, seed=1)
        own = np.cov(x_ME, rowvar=False)
        expected = 0.7 * own + 0.3 * np.trace(own) / 4 * np.eye(4)
        fitted = fit_gaussian(x_ME, family=CovarianceFamily.FULL, shrinkage=0.3)
        np.testing.assert_allclose(fitted.covariance, expected, atol=1e-10)

    def test_diagonal_and_spherical(self):
        x_ME = samples(num=15, dimension=4, seed=2)
        variances = x_ME.var(axis=0, ddof=1)
        diagonal = fit_gaussian(x_ME, family=CovarianceFamily.DIAGONAL)
        np.testing.assert_allclose(diagonal.covariance, np.diag(variances), atol=1e-10)
        spherical = fit_gaussian(x_ME, family=CovarianceFamily.SPHERICAL)
        np.testing.assert_allclose(spherical.covariance, variances.mean() * np.eye(4), atol=1e-10)

    @pytest.mark.parametrize("family", OWN_FAMILIES)
    @pytest.mark.parametrize("num", [1, 2, 20])
    def test_dead_dimensions_and_equal_samples_keep_a_variance(self, family, num):
        x_ME = np.tile(samples(num=1, dimension=6, seed=3), (num, 1))
        gaussian = fit_gaussian(x_ME, family=family)
        assert np.isfinite(gaussian.log_likelihood(np.ones(6)))
        assert (np.linalg.eigvalsh(gaussian.covariance) > 0).all()


class TestMisuse:
    @pytest.mark.parametrize("family", [CovarianceFamily.POOLED, CovarianceFamily.POOLED_EB])
    def test_pooled_families_need_a_pool(self, family):
        with pytest.raises(ValueError, match="pool"):
            fit_gaussian(samples(num=5, dimension=3, seed=0), family=family)

    @pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.full((2, 3), np.nan)])
    def test_samples_that_are_none(self, bad):
        with pytest.raises(ValueError, match="finite sample"):
            fit_gaussian(bad, family=CovarianceFamily.FULL)

    @pytest.mark.parametrize("shrinkage", [0.0, 1.5])
    def test_shrinkage_out_of_range(self, shrinkage):
        with pytest.raises(ValueError, match="shrinkage"):
            fit_gaussian(np.ones((2, 3)), family=CovarianceFamily.FULL, shrinkage=shrinkage)

    def test_directions_on_an_uneven_base(self):
        with pytest.raises(ValueError, match="isotropic"):
            AdapterGaussian(
                mean_E=np.zeros(2),
                base_variance_E=np.array([1.0, 2.0]),
                directions_KE=np.array([[1.0, 0.0]]),
                excess_K=np.ones(1),
            )

    def test_no_variance(self):
        with pytest.raises(ValueError, match="positive"):
            AdapterGaussian(
                mean_E=np.zeros(1), base_variance_E=np.zeros(1), directions_KE=np.zeros((0, 1)), excess_K=np.zeros(0)
            )
