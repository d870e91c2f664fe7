"""Who in a pool is likely to be taken for whom: the bounds of `confusability` for thousands of adapters.

Distances are computed for some adapters at a time, so that memory grows with the pool and not with its square.

Besides the distance a rival has a *same-task ratio*. If two adapters had the same task, the difference of their sample
means in whitened units would be noise of variance `1/m_i + 1/m_j` in each of E directions, so

    |y(mean_i) - y(mean_j)|^2 / (E (1/m_i + 1/m_j))

is 1 on average, whatever the numbers of samples. Near 1 the samples give no reason to keep the two apart.

Shapes: L adapters, B audited ones, R rivals of each, E embedding dimension, K directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.confusability import whitened_distances
from hilora.covariance import FloatArray
from hilora.empirical_bayes import PooledEmpiricalBayes

_ROWS_AT_A_TIME = 256

SAME_TASK_RATIO = 1.5
"""Ratios up to this are those of one task described twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolAudit:
    """What is known of the audited adapters, one a row."""

    rows_B: NDArray[np.intp]
    """Places of the audited adapters in the pool."""
    routed_right_B: FloatArray
    """The least probability that a text of the adapter's task is routed to it: `max(0, 1 - sum_j exp(-D_ij))`."""
    rivals_BR: NDArray[np.intp]
    """Places of the nearest others, nearest first."""
    distances_BR: FloatArray
    """`D_ij` to them."""
    same_task_BR: FloatArray
    """Their same-task ratios."""


def audit_pool(
    model: PooledEmpiricalBayes,
    num_samples_L: NDArray[np.intp],
    *,
    num_rivals: int,
    rows: NDArray[np.intp] | None = None,
) -> PoolAudit:
    """Compare adapters with their whole pool.

    Args:
        model: the fitted pool.
        num_samples_L: `m` of each adapter.
        num_rivals: rivals to report of each; all others where the pool is smaller.
        rows: places of the adapters to audit; all unless given.
    """
    gaussians = model.gaussians
    rows_B = np.arange(gaussians.num_adapters) if rows is None else rows
    num_rivals = min(num_rivals, gaussians.num_adapters - 1)
    routed_right_B = np.empty(len(rows_B))
    rivals_BR = np.empty((len(rows_B), num_rivals), dtype=np.intp)
    distances_BR = np.empty((len(rows_B), num_rivals))
    same_task_BR = np.empty((len(rows_B), num_rivals))
    for start in range(0, len(rows_B), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        places = rows_B[part]
        distances = whitened_distances(gaussians, places)
        own = np.arange(len(places)), places
        distances[own] = np.inf
        routed_right_B[part] = np.maximum(1.0 - np.exp(-distances).sum(axis=1), 0.0)
        rivals = _nearest(distances, num_rivals)
        rivals_BR[part] = rivals
        distances_BR[part] = np.maximum(np.take_along_axis(distances, rivals, axis=1), 0.0)
        same_task_BR[part] = _same_task_ratios(model, num_samples_L, places, rivals)
    return PoolAudit(
        rows_B=rows_B,
        routed_right_B=routed_right_B,
        rivals_BR=rivals_BR,
        distances_BR=distances_BR,
        same_task_BR=same_task_BR,
    )


def _nearest(distances_BL: FloatArray, num_rivals: int) -> NDArray[np.intp]:
    """Places of the smallest distances of each row, rising, equal ones in their order."""
    if num_rivals < distances_BL.shape[1] - 1:
        candidates = np.sort(np.argpartition(distances_BL, num_rivals, axis=1)[:, :num_rivals], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(distances_BL.shape[1]), distances_BL.shape)
    order = np.argsort(np.take_along_axis(distances_BL, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)[:, :num_rivals]


def _same_task_ratios(
    model: PooledEmpiricalBayes,
    num_samples_L: NDArray[np.intp],
    places_B: NDArray[np.intp],
    rivals_BR: NDArray[np.intp],
) -> FloatArray:
    """The ratio of each adapter with each of its rivals, `[B, R]`."""
    own_BK = _sample_means(model, num_samples_L, places_B)
    ratios_BR = np.empty(rivals_BR.shape)
    for rank in range(rivals_BR.shape[1]):
        rival_B = rivals_BR[:, rank]
        gaps_BK = own_BK - _sample_means(model, num_samples_L, rival_B)
        noise_B = 1.0 / num_samples_L[places_B] + 1.0 / num_samples_L[rival_B]
        ratios_BR[:, rank] = (gaps_BK**2).sum(axis=1) / (noise_B * len(model.space.center_E))
    return ratios_BR


def _sample_means(
    model: PooledEmpiricalBayes, num_samples_L: NDArray[np.intp], places_B: NDArray[np.intp]
) -> FloatArray:
    """`y(mean)` from the predictive mean `u = m b / (m b + 1) y(mean)`, `[B, K]`; all of a mean lies in the K axes."""
    spread_BK = num_samples_L[places_B, None] * model.between_K
    return model.gaussians.means_LK[places_B] * (spread_BK + 1.0) / spread_BK
