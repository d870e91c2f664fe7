"""Which adapters take part in a request: equation E4 of the paper and its calibrated successor.

All functions work on scores in a fixed order of the pool and break ties by that order; `SequenceRouter` sorts the
pool by `adapter_id`, which makes the choice independent of the order of registration.

Shapes: L adapters.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray


def descending(values_L: FloatArray) -> NDArray[np.intp]:
    """Indices from the largest value to the smallest, equal ones in their order."""
    return np.argsort(-values_L, kind="stable")


def threshold_candidates(scores_L: FloatArray, *, min_candidates: int) -> NDArray[np.intp]:
    """E4 of arXiv 2510.12266: every adapter of positive score; if there is none, the best few.

        C = { i : s_i > 0 }                if max s > 0
        C = top max(ceil(|max s|), k)      otherwise

    Args:
        scores_L: `s_i` of E3, log-likelihood per dimension.
        min_candidates: `k`.

    Returns:
        Indices by falling score; never empty for a pool that is not.
    """
    order = descending(scores_L)
    if not len(order):
        return order
    highest = float(scores_L[order[0]])
    if highest > 0.0:
        return order[: int((scores_L > 0.0).sum())]
    return order[: max(math.ceil(abs(highest)), min_candidates)]


def mass_candidates(posterior_L: FloatArray, *, mass: float, total: float | None = None) -> NDArray[np.intp]:
    """The fewest adapters that hold `mass` of the posterior, by falling posterior.

    Args:
        posterior_L: of the whole pool, or of its best adapters.
        mass: share of the total to be held; where the adapters given do not hold it, all of them are taken.
        total: the whole pool's sum; that of `posterior_L` unless given.
    """
    order = descending(posterior_L)
    if not len(order):
        return order
    # Rounding must not add an adapter of no weight to a sum that is already there.
    total = float(posterior_L.sum()) if total is None else total
    is_short = np.cumsum(posterior_L[order]) < mass * total - 1e-12
    return order[: int(is_short.sum()) + 1]
