"""How easily two adapters' tasks are taken for one another, before any request has come.

The Bhattacharyya distance of two Gaussians, with `S = (S_i + S_j) / 2`,

    D_ij = 1/8 (mu_i - mu_j)^T S^-1 (mu_i - mu_j) + 1/2 ln( det S / sqrt(det S_i det S_j) )

bounds the error of the best possible choice between them by `sqrt(pi_i pi_j) exp(-D_ij)`; the union bound over the
pool bounds the error of routing (arXiv 2510.12266, sec. 4). The bounds hold for texts that follow the fitted
Gaussians: for real ones they are optimistic.

Shapes: L adapters, B of them, E embedding dimension, K directions of a low-rank covariance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian import AdapterGaussian
from hilora.pooled_gaussian import WhitenedGaussians


def bhattacharyya_distance(first: AdapterGaussian, second: AdapterGaussian) -> float:
    """`D_ij` of two Gaussians, at the cost of `(K_i + K_j)^2 E`: no E x E matrix."""
    base_E = 0.5 * (first.base_variance_E + second.base_variance_E)
    scaled_KE = np.concatenate(
        [
            np.sqrt(0.5 * first.excess_K)[:, None] * first.directions_KE,
            np.sqrt(0.5 * second.excess_K)[:, None] * second.directions_KE,
        ]
    ) / np.sqrt(base_E)
    gap_E = (first.mean_E - second.mean_E) / np.sqrt(base_E)
    # S = base^(1/2) (I + F^T F) base^(1/2): Woodbury and the determinant lemma in K dimensions.
    inner_KK = np.eye(len(scaled_KE)) + scaled_KE @ scaled_KE.T
    along_K = scaled_KE @ gap_E
    distance = float(gap_E @ gap_E - along_K @ np.linalg.solve(inner_KK, along_K))
    log_det = float(np.log(base_E).sum() + np.linalg.slogdet(inner_KK)[1])
    return distance / 8.0 + 0.5 * (log_det - 0.5 * (first.log_det_covariance + second.log_det_covariance))


def pairwise_distances(gaussians: Sequence[AdapterGaussian]) -> FloatArray:
    """`D_ij` of all pairs, `[L, L]`, symmetric with a zero diagonal."""
    distances_LL = np.zeros((len(gaussians), len(gaussians)))
    for i, first in enumerate(gaussians):
        for j in range(i):
            distances_LL[i, j] = distances_LL[j, i] = bhattacharyya_distance(first, gaussians[j])
    return distances_LL


def whitened_pairwise_distances(gaussians: WhitenedGaussians) -> FloatArray:
    """`D_ij` of a pool's predictive Gaussians, `[L, L]`. For small pools; `whitened_distances` takes some rows."""
    distances_LL = whitened_distances(gaussians, np.arange(gaussians.num_adapters))
    np.fill_diagonal(distances_LL, 0.0)
    return 0.5 * (distances_LL + distances_LL.T)


def whitened_distances(gaussians: WhitenedGaussians, rows_B: NDArray[np.intp]) -> FloatArray:
    """`D_ij` of some of a pool's predictive Gaussians to all of them, `[B, L]`: one matrix product per pair of sample
    counts. An adapter's distance to itself is 0 up to rounding."""
    distances_BL = np.empty((len(rows_B), gaussians.num_adapters))
    groups = range(len(gaussians.variances_GK))
    members = [np.flatnonzero(gaussians.group_L == group) for group in groups]
    for g in groups:
        of_g = np.flatnonzero(gaussians.group_L[rows_B] == g)
        if not len(of_g):
            continue
        for h in groups:
            precision_K = 2.0 / (gaussians.variances_GK[g] + gaussians.variances_GK[h])
            gaps = _squared_gaps(gaussians.means_LK[rows_B[of_g]], gaussians.means_LK[members[h]], precision_K)
            distances_BL[np.ix_(of_g, members[h])] = gaps / 8.0 + _log_det_gap(gaussians, g, h)
    return distances_BL


def pairwise_error_bound(distance: float, *, prior_first: float = 0.5, prior_second: float = 0.5) -> float:
    """The most that the best choice between two tasks errs: `sqrt(pi_i pi_j) exp(-D_ij)`."""
    return float(np.sqrt(prior_first * prior_second) * np.exp(-distance))


def routed_right_bound(distances_LL: FloatArray) -> FloatArray:
    """For each adapter, the least probability that a text of its task is routed to it, `[L]`.

    The union bound `1 - sum_{j != i} exp(-D_ij)` under equal priors, at least 0.
    """
    others = np.exp(-distances_LL)
    np.fill_diagonal(others, 0.0)
    return np.maximum(1.0 - others.sum(axis=1), 0.0)


def routing_error_bound(distances_LL: FloatArray) -> float:
    """The most that routing errs over the pool under equal priors: `sum_{i<j} exp(-D_ij) / L`, at most 1."""
    num_adapters = len(distances_LL)
    pairs = np.exp(-distances_LL[np.triu_indices(num_adapters, k=1)])
    return min(float(pairs.sum()) / max(num_adapters, 1), 1.0)


def _squared_gaps(first_LK: FloatArray, second_LK: FloatArray, precision_K: FloatArray) -> FloatArray:
    first, second = first_LK * np.sqrt(precision_K), second_LK * np.sqrt(precision_K)
    square = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * first @ second.T
    return np.maximum(square, 0.0)


def _log_det_gap(gaussians: WhitenedGaussians, g: int, h: int) -> float:
    """`1/2 ln( det S / sqrt(det S_g det S_h) )`."""
    along = _half_log_gap(gaussians.variances_GK[g], gaussians.variances_GK[h])
    rest = _half_log_gap(gaussians.rest_variance_G[g : g + 1], gaussians.rest_variance_G[h : h + 1])
    return along + gaussians.num_rest * rest


def _half_log_gap(first: FloatArray, second: FloatArray) -> float:
    return 0.5 * float((np.log(0.5 * (first + second)) - 0.5 * (np.log(first) + np.log(second))).sum())
