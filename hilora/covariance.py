"""Covariances of few samples in many dimensions: shrinkage, floors, and what is shared by a pool.

Twenty texts in 384 dimensions say almost nothing about 384 x 384 numbers. Every estimate here is therefore pulled
towards a multiple of the identity, and no direction is ever given no variance at all: sentence encoders have
dimensions that never move.

Shapes: M samples of one adapter, N samples of all, L adapters, E embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_CACHED_ROWS = 256
_LEAST_HALVED = 48

VARIANCE_FLOOR = 1e-8
"""Least variance of any direction; embeddings have norm 1, so a typical variance is `1 / E`."""

DEFAULT_WITHIN_TRACE = 0.5
"""Assumed sum of variances within one task where no adapter has two samples: half of a unit vector's."""


def ledoit_wolf_shrinkage(centered_ME: FloatArray) -> float:
    """The share `g` of the identity in `(1 - g) S + g (tr S / E) I` that is optimal for these samples.

    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), with the
    M x M Gram matrix in place of the E x E covariance where M is smaller.

    Args:
        centered_ME: samples around 0; taken as they are.

    Returns:
        A number within [0, 1]; 1 without any spread.
    """
    num_samples, dimension = centered_ME.shape
    is_wide = num_samples < dimension
    gram = centered_ME @ centered_ME.T if is_wide else centered_ME.T @ centered_ME
    squared_norms = np.einsum("me,me->m", centered_ME, centered_ME)
    return _optimal_shrinkage(
        num_samples=num_samples,
        dimension=dimension,
        gram_energy=float(np.vdot(gram, gram)),
        squares=float(squared_norms.sum()),
        fourth_powers=float(squared_norms @ squared_norms),
    )


def _optimal_shrinkage(
    *, num_samples: int, dimension: int, gram_energy: float, squares: float, fourth_powers: float
) -> float:
    """`ledoit_wolf_shrinkage` from the sums it depends on: `||X^T X||_F^2`, `sum ||x||^2` and `sum ||x||^4`."""
    mean_variance = squares / (num_samples * dimension)
    covariance_energy = gram_energy / num_samples**2
    distance = covariance_energy / dimension - mean_variance**2
    if distance <= np.finfo(np.float64).tiny:
        return 1.0
    noise = (fourth_powers / num_samples - covariance_energy) / (num_samples * dimension)
    return float(np.clip(noise / distance, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class StackedSamples:
    """The samples of all adapters under one another, adapter by adapter."""

    samples_NE: FloatArray
    num_samples_L: NDArray[np.intp]
    """Samples of each adapter, at least 1."""

    @classmethod
    def of(cls, samples: Sequence[NDArray[np.floating]]) -> StackedSamples:
        """Stack one `[m_i, E]` array per adapter.

        Raises:
            ValueError: no adapter, an adapter without a sample, unequal dimensions, or a value that is not finite.
        """
        if not samples:
            raise ValueError("a pool needs at least one adapter")
        if any(block.ndim != 2 or block.shape[0] < 1 for block in samples):
            raise ValueError("every adapter needs an [m, E] array of at least one sample")
        if len({block.shape[1] for block in samples}) != 1:
            raise ValueError("the adapters' samples have different dimensions: one encoder per pool")
        stacked = np.concatenate([np.asarray(block, dtype=np.float64) for block in samples])
        if not np.isfinite(stacked).all():
            raise ValueError("the samples hold values that are not finite")
        return cls(samples_NE=stacked, num_samples_L=np.array([len(block) for block in samples], dtype=np.intp))

    @cached_property
    def adapter_idx(self) -> NDArray[np.intp]:
        """Whose sample each row is, `[N]`."""
        return np.repeat(np.arange(len(self.num_samples_L)), self.num_samples_L)

    @cached_property
    def ordinal(self) -> NDArray[np.intp]:
        """The place of each row among its adapter's samples, `[N]`."""
        starts = np.cumsum(self.num_samples_L) - self.num_samples_L
        return np.arange(len(self.samples_NE)) - starts[self.adapter_idx]

    @cached_property
    def means(self) -> FloatArray:
        """Each adapter's mean, `[L, E]`."""
        ends = np.cumsum(self.num_samples_L)
        means_LE = np.empty((len(ends), self.samples_NE.shape[1]))
        # One by one is a third of reduceat's time, which keeps the interpreter's lock besides: requests would wait.
        for mean_E, start, end in zip(means_LE, (ends - self.num_samples_L).tolist(), ends.tolist(), strict=True):
            np.add.reduce(self.samples_NE[start:end], axis=0, out=mean_E)
        means_LE /= self.num_samples_L[:, None]
        return means_LE

    def keeping(self, is_kept_N: NDArray[np.bool_]) -> StackedSamples:
        """The same adapters with some of their samples; each must keep one."""
        counts = np.bincount(self.adapter_idx[is_kept_N], minlength=len(self.num_samples_L))
        return StackedSamples(samples_NE=self.samples_NE[is_kept_N], num_samples_L=counts.astype(np.intp))


@dataclass(frozen=True, kw_only=True)
class WithinCovariance:
    """The covariance that all adapters of a pool share, as the map that makes it the identity."""

    whitening_EE: FloatArray
    """`W` with `W S_w W^T = I` (lower triangular: the inverse of a Cholesky factor)."""
    log_det_whitening: float
    """`ln det W`, the Jacobian of densities."""
    shrinkage: float
    """The share of the identity in `S_w`."""
    mean_variance: float
    """`tr S_w / E`, before whitening."""


@dataclass(frozen=True, kw_only=True)
class ResidualSums:
    """What the shared covariance needs of the residuals. Sums of parts of a pool add up to those of the pool."""

    scatter_EE: FloatArray
    """`sum r r^T`."""
    num_residuals: int = 0
    """Samples of adapters that have more than one."""
    degrees_of_freedom: int = 0
    """`sum (m - 1)`."""
    squares: float = 0.0
    """`sum ||r||^2`."""
    fourth_powers: float = 0.0
    """`sum ||r||^4`."""

    @classmethod
    def of(cls, stacked: StackedSamples) -> ResidualSums:
        """The sums of some adapters.

        Each adapter's residuals around its own mean are scaled by `sqrt(m / (m - 1))`, which undoes the spread that
        fitting the mean took away.
        """
        dimension = stacked.samples_NE.shape[1]
        scatter_EE = np.zeros((dimension, dimension))
        num_residuals, squares, fourth_powers = 0, 0.0, 0.0
        counts_N = stacked.num_samples_L[stacked.adapter_idx]
        rows_N = np.flatnonzero(counts_N > 1)
        # Some rows at a time: what is made of them should not leave the processor's cache, which requests use as well.
        for start in range(0, len(rows_N), _CACHED_ROWS):
            rows = rows_N[start : start + _CACHED_ROWS]
            residuals = stacked.samples_NE[rows]
            residuals -= stacked.means[stacked.adapter_idx[rows]]
            residuals *= np.sqrt(counts_N[rows] / (counts_N[rows] - 1.0))[:, None]
            squared_norms = np.einsum("ne,ne->n", residuals, residuals)
            scatter_EE += residuals.T @ residuals
            num_residuals += len(rows)
            squares += float(squared_norms.sum())
            fourth_powers += float(squared_norms @ squared_norms)
        return cls(
            scatter_EE=scatter_EE,
            num_residuals=num_residuals,
            degrees_of_freedom=int((stacked.num_samples_L - 1).sum()),
            squares=squares,
            fourth_powers=fourth_powers,
        )

    def __add__(self, other: ResidualSums) -> ResidualSums:
        return ResidualSums(
            scatter_EE=self.scatter_EE + other.scatter_EE,
            num_residuals=self.num_residuals + other.num_residuals,
            degrees_of_freedom=self.degrees_of_freedom + other.degrees_of_freedom,
            squares=self.squares + other.squares,
            fourth_powers=self.fourth_powers + other.fourth_powers,
        )


def fit_within_covariance(sums: ResidualSums) -> WithinCovariance:
    """Estimate `S_w = (1 - g) S + g (tr S / E) I` from the residuals of all adapters.

    `g` is Ledoit and Wolf's, but at least `1 / (1 + degrees of freedom)`: their estimate is blind where two samples
    make one residual. Without any residual `S_w` is isotropic.
    """
    dimension = len(sums.scatter_EE)
    if sums.degrees_of_freedom == 0:
        return _isotropic(DEFAULT_WITHIN_TRACE / dimension, dimension)
    mean_variance = sums.squares / (sums.num_residuals * dimension)
    if mean_variance <= VARIANCE_FLOOR:
        return _isotropic(VARIANCE_FLOOR, dimension)
    optimal = _optimal_shrinkage(
        num_samples=sums.num_residuals,
        dimension=dimension,
        gram_energy=float(np.vdot(sums.scatter_EE, sums.scatter_EE)),
        squares=sums.squares,
        fourth_powers=sums.fourth_powers,
    )
    shrinkage = max(optimal, 1.0 / (1.0 + sums.degrees_of_freedom))
    covariance = (1.0 - shrinkage) * sums.scatter_EE / sums.num_residuals
    covariance[np.diag_indices(dimension)] += max(shrinkage * mean_variance, VARIANCE_FLOOR)
    whitening_EE = _triangular_inverse(np.linalg.cholesky(covariance).astype(np.float64, copy=False))
    return WithinCovariance(
        whitening_EE=whitening_EE,
        log_det_whitening=float(np.log(np.diagonal(whitening_EE)).sum()),
        shrinkage=shrinkage,
        mean_variance=mean_variance,
    )


def _triangular_inverse(lower_EE: FloatArray) -> FloatArray:
    """The inverse of a lower triangular matrix, which is one, too: NumPy inverts without looking for a triangle.

    By halves: `[[A, 0], [C, D]]` has the inverse `[[A', 0], [-D' C A', D']]`.
    """
    dimension = len(lower_EE)
    inverse_EE = np.zeros_like(lower_EE)
    if dimension <= _LEAST_HALVED:
        inverse_EE[:] = np.tril(np.linalg.inv(lower_EE))
        return inverse_EE
    half = dimension // 2
    inverse_EE[:half, :half] = upper = _triangular_inverse(lower_EE[:half, :half])
    inverse_EE[half:, half:] = lower = _triangular_inverse(lower_EE[half:, half:])
    inverse_EE[half:, :half] = -(lower @ lower_EE[half:, :half] @ upper)
    return inverse_EE


def _isotropic(variance: float, dimension: int) -> WithinCovariance:
    scale = variance**-0.5
    return WithinCovariance(
        whitening_EE=np.eye(dimension) * scale,
        log_det_whitening=dimension * float(np.log(scale)),
        shrinkage=1.0,
        mean_variance=variance,
    )
