"""Gaussians of a whole pool in one whitened space, scored all at once.

Under a shared covariance the space can be whitened once; what is left of each adapter is a mean and, per distinct
sample count, one diagonal of variances. The directions in which the adapters' means do not differ need no
coordinates: together they are one isotropic remainder.

Shapes: L adapters, E embedding dimension, K directions in which means differ (at most L - 1), G groups of adapters
with equal variances; `...` leading dimensions of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray, WithinCovariance, fit_within_covariance
from hilora.gaussian import LOG_2_PI
from hilora.pool_statistics import PoolStatistics, SampleBlocks

_BATCH_ADAPTERS = 2048
"""Means moved into the space at a time: a whole pool's at once would keep BLAS from a request for its duration."""


@dataclass(frozen=True, kw_only=True)
class WhitenedSpace:
    """`y = V W (z - center)`: within-task covariance I, axes along the scatter of the means."""

    center_E: FloatArray
    """Mean of the adapters' means."""
    within: WithinCovariance
    directions_KE: FloatArray
    """`V`: orthonormal rows, in whitened coordinates."""
    scatter_K: FloatArray
    """Variance of the adapters' means along each direction."""

    @property
    def num_rest(self) -> int:
        """Directions without a coordinate of their own."""
        return len(self.center_E) - len(self.scatter_K)

    def locate(self, z: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
        """Coordinates `[..., K]` and the squared length of the remainder `[...]` of embeddings `[..., E]`."""
        white = (np.asarray(z, dtype=np.float64) - self.center_E) @ self._to_axes.T
        num_directions = len(self.scatter_K)
        return white[..., :num_directions], (white[..., num_directions:] ** 2).sum(axis=-1)

    @cached_property
    def _to_axes(self) -> FloatArray:
        """Whitens, then turns to a whole basis `[E, E]` that begins with the directions: one product places a text."""
        basis_EE = np.eye(len(self.center_E))
        if len(self.directions_KE):
            basis_EE = np.linalg.qr(self.directions_KE.T, mode="complete").Q.T
            basis_EE[: len(self.directions_KE)] = self.directions_KE
        return basis_EE @ self.within.whitening_EE

    def coordinates(self, z_NE: NDArray[np.floating]) -> FloatArray:
        """The coordinates `[N, K]` alone, of any number of embeddings."""
        to_axes_KE = self._to_axes[: len(self.directions_KE)]
        y_NK = np.empty((len(z_NE), len(to_axes_KE)))
        for start in range(0, len(z_NE), _BATCH_ADAPTERS):
            batch = slice(start, start + _BATCH_ADAPTERS)
            np.matmul(z_NE[batch] - self.center_E, to_axes_KE.T, out=y_NK[batch])
        return y_NK


def fit_whitened_space(statistics: PoolStatistics) -> WhitenedSpace:
    """Whiten by the shared covariance and lay axes through the whitened means."""
    within = fit_within_covariance(statistics.residuals)
    num_adapters, dimension = statistics.means_LE.shape
    center_E = statistics.means_LE.mean(axis=0)
    num_directions = min(num_adapters - 1, dimension)
    if num_adapters <= dimension:
        white_LE = (statistics.means_LE - center_E) @ within.whitening_EE.T
        _, singular_values, rows = np.linalg.svd(white_LE, full_matrices=False)
        squared, directions_KE = singular_values[:num_directions] ** 2, rows[:num_directions]
    else:
        scatter_EE = np.zeros((dimension, dimension))
        for start in range(0, num_adapters, _BATCH_ADAPTERS):
            gaps = statistics.means_LE[start : start + _BATCH_ADAPTERS] - center_E
            scatter_EE += gaps.T @ gaps
        ascending, columns = np.linalg.eigh(within.whitening_EE @ scatter_EE @ within.whitening_EE.T)
        squared, directions_KE = np.maximum(ascending[::-1], 0.0), columns.T[::-1]
    return WhitenedSpace(
        center_E=center_E,
        within=within,
        directions_KE=directions_KE,
        scatter_K=squared / max(num_adapters - 1, 1),
    )


@dataclass(frozen=True, kw_only=True)
class WhitenedGaussians:
    """L Gaussians with diagonal covariances in a `WhitenedSpace`, means 0 in the remainder."""

    num_rest: int
    means_LK: FloatArray
    group_L: NDArray[np.intp]
    """Which row of the variances is each adapter's."""
    variances_GK: FloatArray
    rest_variance_G: FloatArray
    """Variance in each direction of the remainder."""

    @cached_property
    def _slope(self) -> FloatArray:
        """What the coordinates of a text are multiplied with, `[L, K]`."""
        # One coordinate after the other in memory: BLAS takes a third of the time for a text's product.
        return np.asfortranarray(self.means_LK / self.variances_GK[self.group_L])

    @cached_property
    def _offset(self) -> FloatArray:
        """What does not depend on the text, `[L]`."""
        return self._log_dets[self.group_L] - 2.0 * self.constants

    @property
    def num_adapters(self) -> int:
        """L."""
        return len(self.group_L)

    @cached_property
    def precisions(self) -> FloatArray:
        """`1 / v` of each group."""
        return 1.0 / self.variances_GK

    @cached_property
    def constants(self) -> FloatArray:
        """`-1/2 sum_k u_k^2 / v_k`: what of an adapter's offset is not shared by its group."""
        constant_L = np.empty(self.num_adapters)
        for start in range(0, self.num_adapters, _BATCH_ADAPTERS):
            batch = slice(start, start + _BATCH_ADAPTERS)
            constant_L[batch] = -0.5 * np.einsum(
                "lk,lk,lk->l", self.means_LK[batch], self.means_LK[batch], self.precisions[self.group_L[batch]]
            )
        return constant_L

    @cached_property
    def _log_dets(self) -> FloatArray:
        """`ln det` of each group's covariance, with the constant of the normal density."""
        log_det_G = np.log(self.variances_GK).sum(axis=1) + self.num_rest * np.log(self.rest_variance_G)
        return log_det_G + (self.num_rest + self.means_LK.shape[1]) * LOG_2_PI

    def slopes_of(self, places: slice | NDArray[np.intp]) -> FloatArray:
        """What the coordinates of a text are multiplied with, of some adapters: `[C, K]`."""
        return self.means_LK[places] * self.precisions[self.group_L[places]]

    def shared_terms(self, y_K: FloatArray, rest: float) -> FloatArray:
        """What a located text contributes equally to all adapters of a group, `[G]`."""
        return -0.5 * (self.precisions @ y_K**2 + rest / self.rest_variance_G + self._log_dets)

    def log_density_of(self, idx_C: NDArray[np.intp], y_K: FloatArray, rest: float) -> FloatArray:
        """`log_density` of one located text under some adapters, `[C]`, without touching the others."""
        group_C = self.group_L[idx_C]
        scores_C = self.constants[idx_C] + self.shared_terms(y_K, rest)[group_C]
        for group in np.unique(group_C):
            members = np.flatnonzero(group_C == group)
            scores_C[members] += self.means_LK[idx_C[members]] @ (self.precisions[group] * y_K)
        return scores_C

    def log_density(self, y: FloatArray, rest: FloatArray) -> FloatArray:
        """`ln N` of located texts under each adapter, `[..., L]`, in whitened units."""
        # Expanding the square leaves one matrix product; its quadratic part is shared within a group.
        square = y**2 @ self.precisions.T + rest[..., None] / self.rest_variance_G
        return y @ self._slope.T - 0.5 * (square[..., self.group_L] + self._offset)


@dataclass(frozen=True, kw_only=True)
class PooledGaussians:
    """One Gaussian per adapter, all with the pool's covariance: the `pooled` family."""

    space: WhitenedSpace
    gaussians: WhitenedGaussians

    def log_likelihood(self, z: NDArray[np.floating]) -> FloatArray:
        """`ln N(z | mean_i, S_w)` of embeddings `[..., E]`: `[..., L]` in nats."""
        return self.gaussians.log_density(*self.space.locate(z)) + self.space.within.log_det_whitening


def fit_pooled(samples: SampleBlocks) -> PooledGaussians:
    """Fit the `pooled` family to one `[m_i, E]` array of embeddings per adapter.

    Raises:
        ValueError: see `PoolStatistics.of`.
    """
    statistics = PoolStatistics.of(samples)
    space = fit_whitened_space(statistics)
    means_LK = space.coordinates(statistics.means_LE)
    return PooledGaussians(
        space=space,
        gaussians=WhitenedGaussians(
            num_rest=space.num_rest,
            means_LK=means_LK,
            group_L=np.zeros(len(means_LK), dtype=np.intp),
            variances_GK=np.ones((1, means_LK.shape[1])),
            rest_variance_G=np.ones(1),
        ),
    )
