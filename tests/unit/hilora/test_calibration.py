from __future__ import annotations

import numpy as np
import pytest

from hilora.calibration import (
    PRIOR_TEMPERATURE,
    cross_entropy,
    expected_calibration_error,
    fit_temperature,
    softmax,
)


def texts_of_known_temperature(temperature: float, *, num: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose softmax at `temperature` is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    scores_NL = rng.normal(size=(num, 5)) * 3.0 * temperature
    cumulative = softmax(scores_NL / temperature).cumsum(axis=1)
    return scores_NL, (rng.random((num, 1)) > cumulative).sum(axis=1)


class TestTemperature:
    @pytest.mark.parametrize("temperature", [1.5, 6.0, 20.0])
    def test_a_known_one_is_found(self, temperature):
        scores_NL, true_idx_N = texts_of_known_temperature(temperature)
        assert fit_temperature(scores_NL, true_idx_N) == pytest.approx(temperature, rel=0.05)

    def test_it_makes_confidence_honest(self):
        scores_NL, true_idx_N = texts_of_known_temperature(8.0)
        temperature = fit_temperature(scores_NL, true_idx_N)
        assert expected_calibration_error(softmax(scores_NL / temperature), true_idx_N) < 0.02
        assert expected_calibration_error(softmax(scores_NL), true_idx_N) > 0.1

    def test_nothing_to_learn_from_leaves_the_prior(self):
        assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.intp)) == PRIOR_TEMPERATURE

    def test_perfect_scores_stay_near_the_prior(self):
        scores_NL = np.tile(np.array([200.0, 0.0]), (50, 1))
        temperature = fit_temperature(scores_NL, np.zeros(50, dtype=np.intp))
        assert temperature == pytest.approx(PRIOR_TEMPERATURE, rel=0.02)

    def test_underconfident_scores_stop_at_the_floor(self):
        scores_NL, true_idx_N = texts_of_known_temperature(0.2)
        assert fit_temperature(scores_NL, true_idx_N) == pytest.approx(1.0, abs=0.02)


class TestMeasures:
    def test_softmax_survives_large_scores(self):
        np.testing.assert_allclose(softmax(np.array([-9000.0, -9000.0])), [0.5, 0.5])

    def test_cross_entropy_of_a_uniform_guess(self):
        assert cross_entropy(np.zeros((3, 4)), np.array([0, 1, 2]), temperature=2.0) == pytest.approx(np.log(4))

    def test_calibration_error_of_a_coin_called_certain(self):
        posterior_NL = np.tile(np.array([1.0, 0.0]), (10, 1))
        assert expected_calibration_error(posterior_NL, np.array([0, 1] * 5)) == pytest.approx(0.5)
