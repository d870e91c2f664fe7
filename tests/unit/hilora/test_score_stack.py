from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from hilora.calibration import PRIOR_STRENGTH, PRIOR_TEMPERATURE
from hilora.score_stack import fit_stack_weights, unknown_texts


def drawn(*, temperature: float, weight: float, num_texts: int = 3000, num_adapters: int = 12, seed: int = 0):
    """Scores of texts, and whose they are under these two numbers."""
    rng = np.random.default_rng(seed)
    scores = 20.0 * rng.standard_normal((num_texts, num_adapters))
    lexical = 0.5 * rng.standard_normal((num_texts, num_adapters))
    logits = scores / temperature + weight * lexical
    whose = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return scores, lexical, whose


@pytest.mark.parametrize(("temperature", "weight"), [(8.0, 5.0), (20.0, 0.5), (3.0, 2.0)])
def test_both_numbers_are_found(temperature, weight):
    fitted = fit_stack_weights(*drawn(temperature=temperature, weight=weight))
    assert fitted.temperature == pytest.approx(temperature, rel=0.15)
    assert fitted.lexical_weight == pytest.approx(weight, abs=0.4)


@pytest.mark.parametrize("num_texts", [5, 40, 800])
def test_no_general_method_finds_a_smaller_sum(num_texts):
    scores, lexical, whose = drawn(temperature=9.0, weight=3.0, num_texts=num_texts)

    def loss(point: np.ndarray) -> float:
        logits = scores / np.exp(point[0]) + point[1] * lexical
        misfit = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(whose)), whose]
        prior = (point[0] - np.log(PRIOR_TEMPERATURE)) ** 2 + (point[1] * lexical.std(axis=1).mean()) ** 2
        return float(misfit.sum() + 0.5 * PRIOR_STRENGTH * prior)

    best = min(
        minimize(loss, start, bounds=[(0.0, np.log(100.0)), (0.0, None)]).fun for start in ([1.0, 0.1], [3.0, 3.0])
    )
    fitted = fit_stack_weights(scores, lexical, whose)
    assert loss(np.array([np.log(fitted.temperature), fitted.lexical_weight])) <= best + 1e-3


def test_wording_that_misleads_has_no_weight():
    scores, lexical, whose = drawn(temperature=8.0, weight=3.0)
    assert fit_stack_weights(scores, -lexical, whose).lexical_weight == 0.0


def test_wording_without_any_difference_has_no_weight():
    scores, lexical, whose = drawn(temperature=8.0, weight=0.0)
    assert fit_stack_weights(scores, np.zeros_like(lexical), whose).lexical_weight == 0.0


def test_a_pool_without_mistakes_is_not_certain_of_everything():
    scores = np.where(np.eye(6)[np.arange(18) % 6] > 0, 300.0, 0.0)
    fitted = fit_stack_weights(scores, scores / 100.0, np.arange(18) % 6)
    assert 3.0 < fitted.temperature < 30.0
    assert fitted.lexical_weight < 1.0


def test_without_texts_the_prior_holds():
    fitted = fit_stack_weights(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0, dtype=np.intp))
    assert (fitted.temperature, fitted.lexical_weight) == (PRIOR_TEMPERATURE, 0.0)


def test_the_temperature_stays_within_its_bounds():
    scores, lexical, whose = drawn(temperature=8.0, weight=3.0)
    assert fit_stack_weights(scores * 1e-3, lexical, whose).temperature == 1.0
    assert fit_stack_weights(scores * 1e3, lexical, whose).temperature == pytest.approx(100.0)


class TestUnknownTexts:
    def test_without_texts_the_wording_decides(self):
        nothing = np.zeros((0, 4))
        scores = 5000.0 * np.random.default_rng(0).standard_normal((50, 400))
        fitted = fit_stack_weights(
            nothing, nothing, np.zeros(0, dtype=np.intp), prior=unknown_texts(scores), spread=0.5
        )
        assert fitted.temperature == pytest.approx(5000.0, rel=0.05)
        assert fitted.lexical_weight == 4.0

    def test_wording_that_never_varies_has_no_weight(self):
        nothing = np.zeros((0, 4))
        fitted = fit_stack_weights(nothing, nothing, np.zeros(0, dtype=np.intp), prior=unknown_texts(nothing))
        assert fitted.lexical_weight == 0.0

    def test_texts_overrule_what_is_believed(self):
        scores, lexical, whose = drawn(temperature=8.0, weight=0.0, num_texts=600)
        fitted = fit_stack_weights(scores, lexical, whose, prior=unknown_texts(scores))
        assert fitted.temperature == pytest.approx(8.0, rel=0.2)
        assert fitted.lexical_weight < 0.6
