"""Turning log-likelihoods into probabilities that mean what they say.

Embedding dimensions are far from independent given the task, so a softmax of log-likelihoods is wildly
overconfident. One number repairs most of it: `p = softmax(score / T)`, with `T` chosen on texts that the scores were
not fitted to.

Shapes: N texts, L adapters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray

PRIOR_TEMPERATURE = 6.0
"""What real pools need (6 at 66 adapters, 10 to 12 at 1,000): used where the texts cannot tell."""

PRIOR_STRENGTH = 10.0
"""Texts' worth of belief in `PRIOR_TEMPERATURE`. Without it a pool that makes no mistakes on its own few texts would
call every answer certain."""

_CACHED_SCORES = 2**17
"""Scores that are worked on at a time."""
_GOLDEN = (5.0**0.5 - 1.0) / 2.0
_NARROW = 0.005
"""Logarithm of the temperature that is not told apart."""

LOWEST_TEMPERATURE = 1.0
"""Never sharper than the model itself claims to be."""
HIGHEST_TEMPERATURE = 100.0


def softmax(scores: FloatArray) -> FloatArray:
    """Probabilities over the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cross_entropy(scores_NL: NDArray[np.floating], true_idx_N: NDArray[np.intp], *, temperature: float) -> float:
    """Mean of `-ln p(true adapter)` at a temperature, in nats."""
    num_texts = len(scores_NL)
    misfit_N = np.empty(num_texts)
    # Some rows at a time: what exp is taken of should not leave the processor's cache.
    step = max(1, _CACHED_SCORES // scores_NL.shape[1])
    for start in range(0, num_texts, step):
        rows = slice(start, start + step)
        scaled = scores_NL[rows] / scores_NL.dtype.type(temperature)
        highest = scaled.max(axis=1)
        log_sum = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        misfit_N[rows] = log_sum - scaled[np.arange(len(scaled)), true_idx_N[rows]]
    return float(misfit_N.mean())


def fit_temperature(scores_NL: NDArray[np.floating], true_idx_N: NDArray[np.intp]) -> float:
    """The temperature that explains held-out texts best, under a weak log-normal prior at `PRIOR_TEMPERATURE`.

    Args:
        scores_NL: scores of texts that did not take part in the fit, in float64 or float32; may have no rows.
        true_idx_N: whose text each row is.

    Returns:
        `T` within [1, 100].
    """
    if not len(scores_NL):
        return PRIOR_TEMPERATURE

    def loss(log_temperature: float) -> float:
        misfit = cross_entropy(scores_NL, true_idx_N, temperature=float(np.exp(log_temperature)))
        return len(scores_NL) * misfit + 0.5 * PRIOR_STRENGTH * (log_temperature - np.log(PRIOR_TEMPERATURE)) ** 2

    # A coarse grid finds the valley (the sum of the two terms need not be convex), the golden section narrows it down:
    # each step looks at one new place, and a place costs a pass over all scores.
    grid = np.linspace(np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE), 13)
    best = int(np.argmin([loss(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > _NARROW:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - _GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + _GOLDEN * (high - low)
            loss_right = loss(right)
    return float(np.exp(0.5 * (low + high)))


def expected_calibration_error(posterior_NL: FloatArray, true_idx_N: NDArray[np.intp], *, num_bins: int = 15) -> float:
    """How far confidence and success lie apart: over equal bins of the top posterior, the weighted mean of
    |share right - mean confidence|. Within [0, 1]."""
    confidence_N = posterior_NL.max(axis=1)
    is_right_N = posterior_NL.argmax(axis=1) == true_idx_N
    bin_N = np.minimum((confidence_N * num_bins).astype(np.intp), num_bins - 1)
    gap_of_bin = np.bincount(bin_N, weights=is_right_N - confidence_N, minlength=num_bins)
    return float(np.abs(gap_of_bin).sum() / len(confidence_N))
