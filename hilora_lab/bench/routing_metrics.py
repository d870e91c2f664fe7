"""What probabilities are worth: who comes first, how sure they are, and where they go without the right adapter.

Shapes: N queries, L adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import expected_calibration_error
from hilora.covariance import FloatArray

_TOP = (1, 3, 5, 10)
_SET_MASS = 0.9
_NUM_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedQueries:
    """Posteriors of some queries."""

    posterior_NL: FloatArray
    without_own_NL: FloatArray
    """The same with the right adapter taken out of the pool: its own column counts for nothing."""
    true_idx_N: NDArray[np.intp]
    cluster_L: NDArray[np.intp]
    """Which cluster each adapter belongs to."""

    @property
    def ranks(self) -> NDArray[np.intp]:
        """How many adapters stand before the right one; equal ones count as before it."""
        own_N = self.posterior_NL[np.arange(len(self.true_idx_N)), self.true_idx_N]
        return (self.posterior_NL >= own_N[:, None]).sum(axis=1) - 1

    def summary(self) -> dict[str, float]:
        """The figures of the report, in percent but for the size of the sets."""
        rank_N = self.ranks
        figures = {f"top{k}": _percent(rank_N < k) for k in _TOP}
        cluster_N = self.cluster_L[self.true_idx_N]
        figures["cluster1"] = _percent(self.cluster_L[self.posterior_NL.argmax(axis=1)] == cluster_N)
        figures["ece"] = 100.0 * expected_calibration_error(self.posterior_NL, self.true_idx_N)
        size_N = 1 + (np.cumsum(-np.sort(-self.posterior_NL, axis=1), axis=1) < _SET_MASS).sum(axis=1)
        figures["set90_size"] = float(np.minimum(size_N, self.posterior_NL.shape[1]).mean())
        figures["set90_coverage"] = _percent(rank_N < size_N)
        for k in (1, 3):
            figures[f"removed_cluster{k}"] = self._removed_cluster(k)
        return {key: round(value, 3) for key, value in figures.items()}

    def _removed_cluster(self, k: int) -> float:
        """How often the first k contain a relative of the adapter that is not there, where it has any."""
        cluster_N = self.cluster_L[self.true_idx_N]
        has_relative_N = np.bincount(self.cluster_L)[cluster_N] > 1
        if not has_relative_N.any():
            return 0.0
        first_NK = np.argsort(-self.without_own_NL[has_relative_N], axis=1, kind="stable")[:, :k]
        return _percent((self.cluster_L[first_NK] == cluster_N[has_relative_N][:, None]).any(axis=1))


def without_own(posterior_NL: FloatArray, true_idx_N: NDArray[np.intp]) -> FloatArray:
    """The probabilities once the right adapter has gone and nothing was fitted anew."""
    left_NL = posterior_NL.copy()
    left_NL[np.arange(len(true_idx_N)), true_idx_N] = 0.0
    return left_NL


def interval_over_tasks(values_N: Sequence[float] | FloatArray, task_N: NDArray[np.intp]) -> tuple[float, float]:
    """95 % interval of a mean, by drawing whole tasks: queries of one task are not independent."""
    tasks, place_N = np.unique(task_N, return_inverse=True)
    sums = np.bincount(place_N, weights=np.asarray(values_N, dtype=np.float64))
    counts = np.bincount(place_N)
    drawn = np.random.default_rng(_SEED).integers(len(tasks), size=(_NUM_RESAMPLES, len(tasks)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _percent(is_true_N: NDArray[np.bool_]) -> float:
    return 100.0 * float(is_true_N.mean())
