"""One adapter's Gaussian in embedding space, never as an E x E matrix.

With `m` samples in `E >> m` dimensions any covariance is "isotropic (or diagonal) plus a few directions". In the
orthonormal basis of the thin SVD of the centred samples, the Woodbury identity and the determinant lemma reduce to
sums over those directions, so a likelihood costs `O(m E)`.

Shapes: M samples, E embedding dimension, K directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import DEFAULT_WITHIN_TRACE, VARIANCE_FLOOR, FloatArray, ledoit_wolf_shrinkage

LOG_2_PI = float(np.log(2.0 * np.pi))


class CovarianceFamily(StrEnum):
    """What is assumed of an adapter's covariance."""

    FULL = "full"
    """Its own, shrunk by a fixed share."""
    FULL_LEDOIT_WOLF = "full_ledoit_wolf"
    """Its own, shrunk by Ledoit and Wolf's share."""
    DIAGONAL = "diagonal"
    SPHERICAL = "spherical"
    POOLED = "pooled"
    """One covariance shared by all adapters."""
    POOLED_EB = "pooled_eb"
    """Shared, with empirical-Bayes means: the default."""


@dataclass(frozen=True, kw_only=True)
class AdapterGaussian:
    """`N(mean, diag(base_variance) + sum_k excess_k d_k d_k^T)` with orthonormal directions `d_k`.

    Directions need an isotropic base: with them, all entries of `base_variance_E` must be equal.
    """

    mean_E: FloatArray
    base_variance_E: FloatArray
    directions_KE: FloatArray
    excess_K: FloatArray

    def __post_init__(self) -> None:
        if (self.base_variance_E <= 0.0).any() or (self.excess_K < 0.0).any():
            raise ValueError("variances must be positive and excesses must not be negative")
        if len(self.excess_K) and np.ptp(self.base_variance_E) > 0.0:
            raise ValueError("directions need an isotropic base variance")

    @property
    def mean(self) -> FloatArray:
        """The mean `[E]`."""
        return self.mean_E

    @property
    def covariance(self) -> FloatArray:
        """The dense covariance `[E, E]`. For tests; nothing that serves may call it."""
        return np.diag(self.base_variance_E) + (self.directions_KE.T * self.excess_K) @ self.directions_KE

    @cached_property
    def log_det_covariance(self) -> float:
        """`ln det Sigma`."""
        base = float(np.log(self.base_variance_E).sum())
        if not len(self.excess_K):
            return base
        return base + float(np.log1p(self.excess_K / self.base_variance_E[0]).sum())

    def log_likelihood(self, z_E: NDArray[np.floating]) -> float:
        """`ln N(z | mean, Sigma)` in nats."""
        return float(self.log_likelihoods(np.asarray(z_E)[None])[0])

    def log_likelihoods(self, z_NE: NDArray[np.floating]) -> FloatArray:
        """`log_likelihood` of each row, `[N]`."""
        centered_NE = np.asarray(z_NE, dtype=np.float64) - self.mean_E
        distance_N = (centered_NE**2 / self.base_variance_E).sum(axis=1)
        if len(self.excess_K):
            base = self.base_variance_E[0]
            along_NK = centered_NE @ self.directions_KE.T
            distance_N -= along_NK**2 @ (self.excess_K / (base * (base + self.excess_K)))
        return -0.5 * (distance_N + self.log_det_covariance + len(self.mean_E) * LOG_2_PI)


def fit_gaussian(
    samples_ME: NDArray[np.floating], *, family: CovarianceFamily, shrinkage: float = 0.5
) -> AdapterGaussian:
    """Fit one adapter's Gaussian to its samples alone.

    Covariances are unbiased (`M - 1`). A single sample has no spread: it gets the isotropic prior
    `DEFAULT_WITHIN_TRACE / E`.

    Args:
        samples_ME: embeddings, at least one.
        family: `FULL`, `FULL_LEDOIT_WOLF`, `DIAGONAL` or `SPHERICAL`.
        shrinkage: share of the isotropic part, `FULL` only, within (0, 1].

    Raises:
        ValueError: a pooled family (see `hilora.pooled_gaussian`), no samples, or values that are not finite.
    """
    samples_ME = np.asarray(samples_ME, dtype=np.float64)
    if samples_ME.ndim != 2 or not len(samples_ME) or not np.isfinite(samples_ME).all():
        raise ValueError("fit_gaussian needs an [M, E] array of at least one finite sample")
    if not 0.0 < shrinkage <= 1.0:
        raise ValueError(f"shrinkage {shrinkage} is outside (0, 1]")
    num_samples, dimension = samples_ME.shape
    mean_E = samples_ME.mean(axis=0)
    if num_samples == 1:
        return _without_directions(mean_E, np.full(dimension, DEFAULT_WITHIN_TRACE / dimension))
    centered_ME = samples_ME - mean_E
    variance_E = (centered_ME**2).sum(axis=0) / (num_samples - 1)
    mean_variance = float(variance_E.mean())
    if family is CovarianceFamily.DIAGONAL:
        return _without_directions(mean_E, variance_E)
    if family is CovarianceFamily.SPHERICAL:
        return _without_directions(mean_E, np.full(dimension, mean_variance))
    if family is CovarianceFamily.FULL_LEDOIT_WOLF:
        # Two samples leave one residual and Ledoit-Wolf no notion of its noise.
        shrinkage = max(ledoit_wolf_shrinkage(centered_ME), 1.0 / num_samples)
    elif family is not CovarianceFamily.FULL:
        raise ValueError(f"the {family} family is fitted to a pool, not to one adapter")
    _, singular_values, directions_KE = np.linalg.svd(centered_ME, full_matrices=False)
    return AdapterGaussian(
        mean_E=mean_E,
        base_variance_E=np.full(dimension, max(shrinkage * mean_variance, VARIANCE_FLOOR)),
        directions_KE=directions_KE,
        excess_K=(1.0 - shrinkage) * singular_values**2 / (num_samples - 1),
    )


def _without_directions(mean_E: FloatArray, variance_E: FloatArray) -> AdapterGaussian:
    return AdapterGaussian(
        mean_E=mean_E,
        base_variance_E=np.maximum(variance_E, VARIANCE_FLOOR),
        directions_KE=np.zeros((0, len(mean_E))),
        excess_K=np.zeros(0),
    )
