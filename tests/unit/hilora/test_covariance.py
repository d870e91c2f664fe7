from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.covariance import (
    DEFAULT_WITHIN_TRACE,
    ResidualSums,
    StackedSamples,
    fit_within_covariance,
    ledoit_wolf_shrinkage,
)
from tests.builders.profiles import clustered_samples

quick = settings(deadline=None, max_examples=25)


def literal_ledoit_wolf(x_ME: np.ndarray) -> float:
    """The 2004 paper's definitions, sample by sample: b^2 / d^2."""
    num, dimension = x_ME.shape
    covariance = x_ME.T @ x_ME / num
    target = np.trace(covariance) / dimension * np.eye(dimension)
    d2 = ((covariance - target) ** 2).sum() / dimension
    b2 = sum(((np.outer(x, x) - covariance) ** 2).sum() / dimension for x in x_ME) / num**2
    return min(b2, d2) / d2


class TestLedoitWolf:
    @quick
    @given(num=st.integers(2, 12), dimension=st.integers(2, 9), seed=st.integers(0, 1000))
    def test_it_follows_the_definition_on_both_sides_of_the_gram_trick(self, num, dimension, seed):
        rng = np.random.default_rng(seed)
        x_ME = rng.normal(size=(num, dimension)) * rng.uniform(0.2, 3.0, size=dimension)
        assert ledoit_wolf_shrinkage(x_ME) == pytest.approx(literal_ledoit_wolf(x_ME), abs=1e-9)

    def test_no_spread_is_all_shrinkage(self):
        assert ledoit_wolf_shrinkage(np.zeros((4, 3))) == 1.0

    def test_it_vanishes_with_many_samples_of_an_uneven_cloud(self):
        x_ME = np.random.default_rng(0).normal(size=(20_000, 3)) * np.array([1.0, 2.0, 4.0])
        assert ledoit_wolf_shrinkage(x_ME) < 0.01


class TestStacking:
    def test_rows_know_their_adapter_and_place(self):
        stacked = StackedSamples.of([np.full((2, 3), 1.0), np.full((1, 3), 5.0), np.full((3, 3), 2.0)])
        assert stacked.adapter_idx.tolist() == [0, 0, 1, 2, 2, 2]
        assert stacked.ordinal.tolist() == [0, 1, 0, 0, 1, 2]
        assert stacked.means[:, 0].tolist() == [1.0, 5.0, 2.0]

    def test_keeping_some_rows_keeps_the_adapters(self):
        stacked = StackedSamples.of(clustered_samples(num_samples=[3, 1, 4]))
        kept = stacked.keeping(stacked.ordinal == 0)
        assert kept.num_samples_L.tolist() == [1, 1, 1]
        np.testing.assert_array_equal(kept.means, stacked.samples_NE[[0, 3, 4]])

    @pytest.mark.parametrize(
        ("blocks", "complaint"),
        [
            ([], "at least one adapter"),
            ([np.ones((0, 3))], "at least one sample"),
            ([np.ones(3)], "at least one sample"),
            ([np.ones((1, 3)), np.ones((1, 4))], "dimensions"),
            ([np.full((1, 3), np.inf)], "finite"),
        ],
    )
    def test_what_cannot_be_stacked(self, blocks, complaint):
        with pytest.raises(ValueError, match=complaint):
            StackedSamples.of(blocks)


class TestWithinCovariance:
    def test_whitening_makes_the_shrunk_pooled_covariance_the_identity(self):
        blocks = clustered_samples(num_samples=[4, 9, 2], dimension=5)
        within = fit_within_covariance(ResidualSums.of(StackedSamples.of(blocks)))
        residuals = np.concatenate(
            [(block - block.mean(axis=0)) * np.sqrt(len(block) / (len(block) - 1)) for block in blocks]
        ).astype(np.float64)
        pooled = residuals.T @ residuals / len(residuals)
        g = within.shrinkage
        expected = (1 - g) * pooled + g * np.trace(pooled) / 5 * np.eye(5)
        whitened = within.whitening_EE @ expected @ within.whitening_EE.T
        np.testing.assert_allclose(whitened, np.eye(5), atol=1e-5)
        assert within.log_det_whitening == pytest.approx(-0.5 * np.linalg.slogdet(expected)[1], rel=1e-4)

    def test_single_samples_fall_back_on_the_spread_of_unit_vectors(self):
        stacked = StackedSamples.of(clustered_samples(num_samples=[1, 1], dimension=5))
        within = fit_within_covariance(ResidualSums.of(stacked))
        assert within.mean_variance * 5 == DEFAULT_WITHIN_TRACE
        np.testing.assert_allclose(within.whitening_EE, np.eye(5) * (5 / DEFAULT_WITHIN_TRACE) ** 0.5)

    @pytest.mark.parametrize("block", [np.ones((3, 4)), np.eye(4)[:2]])
    def test_equal_samples_and_one_residual_stay_invertible(self, block):
        within = fit_within_covariance(ResidualSums.of(StackedSamples.of([block])))
        assert np.isfinite(within.whitening_EE).all()
        assert within.shrinkage >= 0.5

    def test_sums_of_parts_are_those_of_the_whole(self):
        blocks = clustered_samples(num_samples=[4, 9, 1, 2], dimension=5)
        parts = ResidualSums.of(StackedSamples.of(blocks[:2])) + ResidualSums.of(StackedSamples.of(blocks[2:]))
        whole = ResidualSums.of(StackedSamples.of(blocks))
        assert parts.num_residuals == whole.num_residuals == 15
        assert parts.degrees_of_freedom == whole.degrees_of_freedom == 12
        np.testing.assert_allclose(parts.scatter_EE, whole.scatter_EE, atol=1e-12)
        assert parts.fourth_powers == pytest.approx(whole.fourth_powers)
        assert fit_within_covariance(parts).shrinkage == pytest.approx(fit_within_covariance(whole).shrinkage)

    def test_the_shrinkage_from_sums_is_that_of_the_residuals(self):
        (block,) = clustered_samples(num_samples=[400], dimension=5)
        residuals = (block - block.mean(axis=0, dtype=np.float64)) * (400 / 399) ** 0.5
        within = fit_within_covariance(ResidualSums.of(StackedSamples.of([block])))
        assert within.shrinkage == pytest.approx(ledoit_wolf_shrinkage(residuals), rel=1e-9)
