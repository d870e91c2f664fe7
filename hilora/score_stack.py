"""How much each of two scores counts: `p = softmax(score / T + b lexical)`, both numbers from held-out texts.

    T, b = argmin  sum_n -ln p(true adapter of n) + (k / 2) (ln T - ln T_0)^2 + (k / 2) (b sd - B_0)^2,    b >= 0

with `sd` the lexical score's mean spread over the adapters of a text. No weight fixed in advance is right for two
pools: prompts from templates are told apart by their wording (b is large), tasks that share templates are not, and
there every weight costs accuracy (b falls to 0). The prior is worth `k = 10` texts: a pool that makes no mistakes on
its own few texts learns neither certainty nor a weight from them.

Shapes: N held-out texts, C adapters of which one is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, PRIOR_STRENGTH, PRIOR_TEMPERATURE, softmax
from hilora.covariance import FloatArray

_MAX_STEPS = 50
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class StackPrior:
    """What is believed before any text was held out."""

    temperature: float
    """`T_0`."""
    lexical_share: float
    """`B_0`: nats that the wording moves, in the mean."""
    strength: float = PRIOR_STRENGTH
    """`k`: how many texts' worth of belief that is."""


KNOWN_TEXTS = StackPrior(temperature=PRIOR_TEMPERATURE, lexical_share=0.0)
"""Of texts that some adapter explains: the wording has to earn its weight."""
_UNKNOWN_LEXICAL_SHARE = 2.0
_UNKNOWN_STRENGTH = 1.0


def unknown_texts(scores_NC: NDArray[np.floating]) -> StackPrior:
    """The prior of texts that no adapter explains: the Gaussian moves one nat, and the wording two.

    Far from every adapter the Gaussian's differences are large and mean little. So the wording decides and the Gaussian
    breaks ties, unless texts that were held out say otherwise: one text's worth of belief yields to a few.

    Args:
        scores_NC: log-likelihoods of the pool's held-out texts.
    """
    return StackPrior(
        temperature=max(mean_spread(scores_NC), PRIOR_TEMPERATURE),
        lexical_share=_UNKNOWN_LEXICAL_SHARE,
        strength=_UNKNOWN_STRENGTH,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StackWeights:
    """What a score is divided by and a lexical score multiplied with."""

    temperature: float
    """`T`, at least 1."""
    lexical_weight: float
    """`b >= 0`."""

    def combined(self, scores: FloatArray, lexical: FloatArray) -> FloatArray:
        """The logarithm of the posterior, up to a constant of each text."""
        return scores / self.temperature + self.lexical_weight * lexical


def fit_stack_weights(
    scores_NC: NDArray[np.floating],
    lexical_NC: NDArray[np.floating],
    true_idx_N: NDArray[np.intp],
    *,
    prior: StackPrior = KNOWN_TEXTS,
    spread: float | None = None,
) -> StackWeights:
    """Fit both numbers.

    Args:
        scores_NC: log-likelihoods of texts that did not take part in the fit; may have no rows.
        lexical_NC: their lexical scores under wordings that they did not take part in either.
        true_idx_N: the column of the adapter whose text each row is.
        prior: what holds without rows.
        spread: `sd`; by default that of the rows, and 0 without rows.
    """
    if spread is None:
        spread = mean_spread(lexical_NC)
    start = prior.lexical_share / spread if spread > 0.0 else 0.0
    if not len(scores_NC):
        return StackWeights(temperature=prior.temperature, lexical_weight=start)
    loss = _Loss(
        np.asarray(scores_NC, dtype=np.float64),
        np.asarray(lexical_NC, dtype=np.float64),
        true_idx_N,
        prior=prior,
        spread=spread,
    )
    low = np.array([np.log(LOWEST_TEMPERATURE), 0.0])
    high = np.array([np.log(max(HIGHEST_TEMPERATURE, prior.temperature)), np.inf])
    point = np.array([np.log(prior.temperature), start])
    value = loss.value(point)
    for _ in range(_MAX_STEPS):
        gradient, curvature = loss.slopes(point)
        # A bound that the slope pushes against is kept, and the other number moves alone.
        is_free = ~(((point <= low) & (gradient > 0.0)) | ((point >= high) & (gradient < 0.0)))
        if not is_free.any():
            break
        step = np.zeros(2)
        step[is_free] = np.linalg.solve(curvature[np.ix_(is_free, is_free)], gradient[is_free])
        scale = 1.0
        while scale > _TOLERANCE:
            there = np.clip(point - scale * step, low, high)
            value_there = loss.value(there)
            if value_there < value:
                break
            scale /= 2.0
        else:
            break
        gain, point, value = value - value_there, there, value_there
        if gain < _TOLERANCE:
            break
    return StackWeights(temperature=float(np.exp(point[0])), lexical_weight=float(point[1]))


def mean_spread(scores_NC: NDArray[np.floating]) -> float:
    """The mean standard deviation over the adapters of a text; 0 without texts."""
    return float(scores_NC.std(axis=1).mean()) if len(scores_NC) else 0.0


class _Loss:
    """The sum to be made small, as a function of `(ln T, b)`."""

    def __init__(
        self,
        scores_NC: FloatArray,
        lexical_NC: FloatArray,
        true_idx_N: NDArray[np.intp],
        *,
        prior: StackPrior,
        spread: float,
    ) -> None:
        rows = np.arange(len(scores_NC))
        # Relative to the right adapter's: what is left is the evidence against it.
        self._scores_NC = scores_NC - scores_NC[rows, true_idx_N][:, None]
        self._lexical_NC = lexical_NC - lexical_NC[rows, true_idx_N][:, None]
        self._spread = spread
        self._expected = prior

    def _logits(self, point: FloatArray) -> FloatArray:
        return np.exp(-point[0]) * self._scores_NC + point[1] * self._lexical_NC

    def _prior(self, point: FloatArray) -> FloatArray:
        expected = self._expected
        # Where the wording never varies, its weight means nothing, and nothing is expected of it.
        share = point[1] * self._spread - expected.lexical_share if self._spread > 0.0 else 0.0
        return np.array([point[0] - np.log(expected.temperature), share])

    def value(self, point: FloatArray) -> float:
        logits_NC = self._logits(point)
        highest_N = logits_NC.max(axis=1)
        misfit_N = highest_N + np.log(np.exp(logits_NC - highest_N[:, None]).sum(axis=1))
        return float(misfit_N.sum() + 0.5 * self._expected.strength * (self._prior(point) ** 2).sum())

    def slopes(self, point: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient and Fisher information."""
        posterior_NC = softmax(self._logits(point))
        # How the logits move with ln T and with b.
        moves = (-np.exp(-point[0]) * self._scores_NC, self._lexical_NC)
        means = [(posterior_NC * move).sum(axis=1) for move in moves]
        curvature = np.array(
            [
                [float((posterior_NC * moves[i] * moves[j]).sum() - (means[i] * means[j]).sum()) for j in range(2)]
                for i in range(2)
            ]
        )
        unit = np.array([1.0, self._spread])
        gradient = np.array([mean.sum() for mean in means]) + self._expected.strength * self._prior(point) * unit
        # The last term keeps it invertible where the lexical score does not vary.
        return gradient, curvature + self._expected.strength * np.diag(unit**2) + 1e-9 * np.eye(2)
