"""The default score: a pooled Gaussian with empirical-Bayes means (two-covariance PLDA), calibrated.

In whitened space, tasks scatter around the pool's centre with variance `b` along each direction, and texts around
their task with variance 1. After `m` texts the mean of a task is known only up to a posterior, so that a new text of
adapter i is predicted by

    u_i = m b / (m b + 1) * y(mean_i)      v_i = 1 + b / (m b + 1)      score_i(z) = ln N(y(z); u_i, diag v_i)

Few texts thus pull an adapter towards the centre and widen it. A task that has no adapter is predicted by
`N(y; 0, diag(1 + b))`; the difference of the two is the log-likelihood ratio, where 0 means "no better than a task
we do not have". The posterior is `softmax(score / T)`, `T` fitted to texts that were held out of the whole fit.

Shapes: L adapters, N texts or adapters that came later, E embedding dimension, K directions, G distinct sample counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import PRIOR_TEMPERATURE, fit_temperature, softmax
from hilora.covariance import FloatArray
from hilora.held_out_samples import CalibrationSamples, choose_calibration
from hilora.pool_statistics import PoolStatistics, SampleBlocks
from hilora.pooled_gaussian import WhitenedGaussians, WhitenedSpace, fit_whitened_space

_BETWEEN_SHRINKAGE = 0.2
"""Share of the isotropic part in the between-task covariance."""
_BETWEEN_FLOOR = 1e-3
"""Least between-task variance, in units of the within-task one."""


@dataclass(frozen=True, kw_only=True)
class PooledEmpiricalBayes:
    """A fitted pool. Adapters keep the order of the samples it was fitted to."""

    space: WhitenedSpace
    between_K: FloatArray
    """`b` along each direction."""
    between_rest: float
    """`b` in each direction of the remainder."""
    gaussians: WhitenedGaussians
    """Predictive Gaussian of each adapter."""
    new_task: WhitenedGaussians
    """The one of a task without an adapter, as a pool of one."""
    temperature: float
    """`T >= 1`."""

    def log_likelihood(self, z: NDArray[np.floating]) -> FloatArray:
        """Predictive log-likelihood of embeddings `[..., E]` under each adapter, `[..., L]`, in nats."""
        return self.gaussians.log_density(*self.space.locate(z)) + self.space.within.log_det_whitening

    def log_likelihood_of_new_task(self, z: NDArray[np.floating]) -> FloatArray:
        """Predictive log-likelihood of embeddings `[..., E]` under a task without an adapter, `[...]`, in nats."""
        return self.new_task.log_density(*self.space.locate(z))[..., 0] + self.space.within.log_det_whitening

    def log_likelihood_ratio(self, z: NDArray[np.floating]) -> FloatArray:
        """`log_likelihood` minus that of a task without an adapter, `[..., L]`: 0 is "no better than a new task"."""
        located = self.space.locate(z)
        return self.gaussians.log_density(*located) - self.new_task.log_density(*located)

    def predict(self, means_NE: NDArray[np.floating], num_samples_N: NDArray[np.intp]) -> WhitenedGaussians:
        """Predictive Gaussians of adapters that came after the fit, under its covariances.

        Args:
            means_NE: the mean of each one's samples.
            num_samples_N: how many these were, each at least 1.
        """
        return _predictive(
            self.space.coordinates(means_NE),
            num_samples_N,
            num_rest=self.space.num_rest,
            between_K=self.between_K,
            between_rest=self.between_rest,
        )

    def posterior(self, z: NDArray[np.floating]) -> FloatArray:
        """Calibrated probability of each adapter, `[..., L]`, given that one of them is right."""
        return softmax(self.log_likelihood(z) / self.temperature)


def fit_pooled_eb(samples: SampleBlocks) -> PooledEmpiricalBayes:
    """Fit the `pooled_eb` family to one `[m_i, E]` array of embeddings per adapter.

    Args:
        samples: in any number and of any sizes from 1; the estimates of a single adapter or of single samples fall
            back on the spread of unit vectors.

    Raises:
        ValueError: see `PoolStatistics.of`.
    """
    calibration = choose_calibration(samples)
    return fit_statistics(calibration.whole_pool(), temperature=held_out_scores(calibration).temperature)


def fit_statistics(statistics: PoolStatistics, *, temperature: float) -> PooledEmpiricalBayes:
    """Fit to sums, with a temperature from elsewhere."""
    space = fit_whitened_space(statistics)
    between_K, between_rest = _between_variances(space, statistics.num_samples_L)
    return PooledEmpiricalBayes(
        space=space,
        between_K=between_K,
        between_rest=between_rest,
        gaussians=_predictive(
            space.coordinates(statistics.means_LE),
            statistics.num_samples_L,
            num_rest=space.num_rest,
            between_K=between_K,
            between_rest=between_rest,
        ),
        new_task=WhitenedGaussians(
            num_rest=space.num_rest,
            means_LK=np.zeros((1, len(between_K))),
            group_L=np.zeros(1, dtype=np.intp),
            variances_GK=1.0 + between_K[None],
            rest_variance_G=np.array([1.0 + between_rest]),
        ),
        temperature=temperature,
    )


def _predictive(
    y_LK: FloatArray, num_samples_L: NDArray[np.intp], *, num_rest: int, between_K: FloatArray, between_rest: float
) -> WhitenedGaussians:
    """The predictive Gaussians of sample means at `y_LK`, which is overwritten."""
    counts_G, group_L = np.unique(num_samples_L, return_inverse=True)
    # b / (m b + 1) is the posterior variance of a task's mean; times m, the share of its sample mean in u.
    posterior_GK = between_K / (counts_G[:, None] * between_K + 1.0)
    for group, count in enumerate(counts_G):
        of_group = np.flatnonzero(group_L == group) if len(counts_G) > 1 else slice(None)
        y_LK[of_group] *= count * posterior_GK[group]
    return WhitenedGaussians(
        num_rest=num_rest,
        means_LK=y_LK,
        group_L=group_L.astype(np.intp),
        variances_GK=1.0 + posterior_GK,
        rest_variance_G=np.asarray(1.0 + between_rest / (counts_G * between_rest + 1.0), dtype=np.float64),
    )


def _between_variances(space: WhitenedSpace, num_samples_L: NDArray[np.intp]) -> tuple[FloatArray, float]:
    """Between-task variance along each direction and in each direction of the remainder.

    The scatter of the sample means overstates that of the tasks by the noise of the means; what is left is shrunk
    towards its average and floored.
    """
    dimension = len(space.center_E)
    if len(num_samples_L) == 1:
        # One task shows no scatter. Unit vectors have variance 1 / E in all: what is not within lies between.
        isotropic = 1.0 / (dimension * space.within.mean_variance) - 1.0
        return np.zeros(0), max(isotropic, _BETWEEN_FLOOR)
    noise = float((1.0 / num_samples_L).mean())
    average = float(space.scatter_K.sum()) / dimension - noise
    pull = _BETWEEN_SHRINKAGE * average
    between_K = (1.0 - _BETWEEN_SHRINKAGE) * (space.scatter_K - noise) + pull
    between_rest = -(1.0 - _BETWEEN_SHRINKAGE) * noise + pull
    return np.maximum(between_K, _BETWEEN_FLOOR), max(between_rest, _BETWEEN_FLOOR)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutScores:
    """Log-likelihoods of texts under fits that have never seen them, up to a constant of each text."""

    scores_NL: NDArray[np.floating]
    true_idx_N: NDArray[np.intp]
    """Whose text each row is."""
    ordinal_N: NDArray[np.intp]
    """Which of its adapter's texts."""
    fold_N: NDArray[np.intp]
    """`Fold.number`."""
    is_unknown_N: NDArray[np.bool_]
    """Whether no adapter explains the text better than a task without one."""

    @property
    def temperature(self) -> float:
        """The `T` that explains them best; without any text the prior's."""
        return fit_temperature(self.scores_NL, self.true_idx_N)


def held_out_scores(calibration: CalibrationSamples) -> HeldOutScores:
    """Fit everything without a fifth of the texts, score those, repeat.

    A single text is never held out. A large pool needs fewer folds: its first ones have texts enough.
    """
    scores: list[NDArray[np.floating]] = [np.zeros((0, calibration.num_adapters), dtype=np.float32)]
    is_unknown: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
    nobody = np.zeros(0, dtype=np.intp)
    places: list[tuple[NDArray[np.intp], ...]] = [(nobody, nobody, nobody)]
    num_rows = 0
    for fold in calibration.folds():
        if num_rows >= calibration.max_rows:
            break
        fitted = fit_statistics(fold.statistics, temperature=PRIOR_TEMPERATURE)
        of_fold = fitted.log_likelihood(fold.held_out_NE)
        is_unknown.append(of_fold.max(axis=1) <= fitted.log_likelihood_of_new_task(fold.held_out_NE))
        if calibration.others is not None:
            # Relative to the best, a large pool's scores are as good in half the memory.
            of_fold = (of_fold - of_fold.max(axis=1, keepdims=True)).astype(np.float32)
        scores.append(of_fold)
        places.append((fold.true_idx_N, fold.ordinal_N, np.full(len(of_fold), fold.number)))
        num_rows += len(fold.true_idx_N)
    true_idx_N, ordinal_N, fold_N = (np.concatenate(parts) for parts in zip(*places, strict=True))
    return HeldOutScores(
        scores_NL=np.concatenate(scores),
        true_idx_N=true_idx_N,
        ordinal_N=ordinal_N,
        fold_N=fold_N,
        is_unknown_N=np.concatenate(is_unknown),
    )
