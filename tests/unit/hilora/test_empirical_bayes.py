from __future__ import annotations

import time

import numpy as np
import pytest

from hilora.calibration import PRIOR_TEMPERATURE
from hilora.covariance import ResidualSums, StackedSamples, fit_within_covariance
from hilora.empirical_bayes import fit_pooled_eb
from tests.builders.profiles import clustered_samples


def literal_scores(blocks: list[np.ndarray], z_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The equations with dense matrices and the symmetric root: scores `[N, L]` and those of a new task `[N]`."""
    within = fit_within_covariance(ResidualSums.of(StackedSamples.of(blocks)))
    covariance = np.linalg.inv(within.whitening_EE.T @ within.whitening_EE)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors / np.sqrt(values)) @ vectors.T
    means = np.stack([block.mean(axis=0, dtype=np.float64) for block in blocks])
    center = means.mean(axis=0)
    white = (means - center) @ root
    dimension, counts = white.shape[1], np.array([len(block) for block in blocks])
    between = np.cov(white, rowvar=False) - (1 / counts).mean() * np.eye(dimension)
    between = 0.8 * between + 0.2 * np.trace(between) / dimension * np.eye(dimension)
    b, v = np.linalg.eigh(between)
    b = np.maximum(b, 1e-3)
    y = (z_NE - center) @ root @ v

    def log_normal(mean, variance):
        return -0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)

    scores = [
        log_normal(m * b / (m * b + 1) * (mean @ v), 1 + b / (m * b + 1)) for m, mean in zip(counts, white, strict=True)
    ]
    return np.stack(scores, axis=1), log_normal(0.0, 1 + b)


class TestScores:
    @pytest.mark.parametrize("counts", [[5, 5, 5, 5], [2, 9, 4, 1], [8, 3], [4] * 12])
    def test_they_follow_the_equations(self, counts):
        blocks = clustered_samples(num_samples=counts, dimension=7)
        fitted = fit_pooled_eb(blocks)
        z_NE = np.random.default_rng(1).normal(size=(5, 7))
        scores, new_task = literal_scores(blocks, z_NE)
        np.testing.assert_allclose(fitted.log_likelihood_ratio(z_NE), scores - new_task[:, None], rtol=1e-6, atol=1e-6)
        jacobian = fitted.space.within.log_det_whitening
        np.testing.assert_allclose(fitted.log_likelihood(z_NE), scores + jacobian, rtol=1e-6, atol=1e-6)

    def test_the_posterior_is_the_tempered_softmax(self):
        fitted = fit_pooled_eb(clustered_samples(num_samples=[6] * 5))
        z_E = np.random.default_rng(2).normal(size=24)
        powers = np.exp((fitted.log_likelihood(z_E) - fitted.log_likelihood(z_E).max()) / fitted.temperature)
        np.testing.assert_allclose(fitted.posterior(z_E), powers / powers.sum())

    def test_own_texts_beat_a_new_task_and_strange_ones_do_not(self):
        blocks = clustered_samples(num_samples=[20] * 8, dimension=48, spread=0.4)
        fitted = fit_pooled_eb(blocks)
        held_back = clustered_samples(num_samples=[40] * 8, dimension=48, spread=0.4, seed=77)
        own = fitted.log_likelihood_ratio(np.stack([block[0] for block in blocks])).max(axis=1)
        strange = fitted.log_likelihood_ratio(np.concatenate(held_back)).max(axis=1)
        assert (own > 0).all()
        assert (strange < 0).mean() > 0.9

    def test_few_samples_shrink_towards_the_centre_and_widen(self):
        fitted = fit_pooled_eb(clustered_samples(num_samples=[20, 20, 20, 2]))
        few, many = fitted.gaussians.variances_GK
        assert (few > many).all()


class TestTemperature:
    def test_a_pool_without_mistakes_is_not_called_certain(self):
        fitted = fit_pooled_eb(clustered_samples(num_samples=[20] * 6, dimension=64, spread=0.2))
        assert fitted.temperature > 2.0

    @pytest.mark.parametrize("counts", [[20], [1], [1, 1, 1]])
    def test_nothing_to_hold_out_leaves_the_prior(self, counts):
        assert fit_pooled_eb(clustered_samples(num_samples=counts)).temperature == PRIOR_TEMPERATURE


class TestTinyPools:
    @pytest.mark.parametrize("counts", [[1], [2], [20], [1, 1], [1, 20], [2, 2], [1, 2, 3], [1] * 30])
    def test_every_number_is_finite(self, counts):
        blocks = clustered_samples(num_samples=counts, dimension=16)
        fitted = fit_pooled_eb(blocks)
        z_NE = np.concatenate([np.eye(16), blocks[0]])
        for values in (fitted.log_likelihood(z_NE), fitted.log_likelihood_ratio(z_NE), fitted.posterior(z_NE)):
            assert values.shape == (len(z_NE), len(counts))
            assert np.isfinite(values).all()

    def test_dead_dimensions_do_no_harm(self):
        blocks = [np.pad(block, ((0, 0), (0, 3))) for block in clustered_samples(num_samples=[20] * 4)]
        fitted = fit_pooled_eb(blocks)
        assert (fitted.log_likelihood(np.stack([block[0] for block in blocks])).argmax(axis=1) == np.arange(4)).all()

    def test_one_adapter_knows_its_own_texts_from_strange_ones(self):
        blocks = clustered_samples(num_samples=[20, 20], dimension=64, spread=0.4)
        fitted = fit_pooled_eb(blocks[:1])
        assert (fitted.log_likelihood_ratio(blocks[0]) > 0).all()
        assert (fitted.log_likelihood_ratio(blocks[1]) < 0).all()


class TestSpeed:
    def test_a_pool_of_the_usual_size_is_fitted_between_two_requests(self):
        blocks = clustered_samples(num_samples=[20] * 36, dimension=384)
        started = time.process_time()
        fit_pooled_eb(blocks)
        assert time.process_time() - started < 1.0
