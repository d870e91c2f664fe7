"""A shortlist of adapters, scored in float64, and whether it can be proved to hold the best ones.

Shapes: L adapters, K coordinates, C shortlisted ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import Neighbours, highest, log_sum_exp
from hilora.pooled_gaussian import WhitenedGaussians

SPARE_RESULTS = 16
"""Results beyond those wanted: rounding may change the order near the end, and equal ones must all be seen."""
_BATCH = 8192


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ScoredShortlist:
    """Shortlisted adapters by falling score, among equals the lower place first."""

    idx_C: NDArray[np.intp]
    scores_C: FloatArray

    def neighbours(self, num_results: int, *, log_partition: float) -> Neighbours:
        """The first of them, as an index answers."""
        return Neighbours(
            idx_C=self.idx_C[:num_results], log_density_C=self.scores_C[:num_results], log_partition=log_partition
        )


def scored_shortlist(
    gaussians: WhitenedGaussians, found: NDArray[np.intp], y_K: FloatArray, rest: float
) -> ScoredShortlist:
    """Score some adapters of a pool."""
    scores_C = gaussians.log_density_of(found, y_K, rest)
    order = np.lexsort((found, -scores_C))
    return ScoredShortlist(idx_C=found[order], scores_C=scores_C[order])


def is_proved(shortlist: ScoredShortlist, *, num_results: int, most_outside: float) -> bool:
    """Whether no adapter outside a shortlist can be among the best.

    Args:
        shortlist: at least `num_results` adapters.
        num_results: how many are wanted.
        most_outside: what none of the others exceeds; minus infinity if there are none.
    """
    return num_results == 0 or most_outside < shortlist.scores_C[num_results - 1]


def scored_one_by_one(
    gaussians: WhitenedGaussians,
    y_K: FloatArray,
    rest: float,
    *,
    num_results: int,
    temperature: float,
    excluded: NDArray[np.intp],
) -> Neighbours:
    """The answer of `GaussianIndex.search` from all allowed scores in float64: the last resort, always right."""
    allowed = np.delete(np.arange(gaussians.num_adapters), excluded)
    scores = np.empty(len(allowed))
    for start in range(0, len(allowed), _BATCH):
        batch = slice(start, start + _BATCH)
        scores[batch] = gaussians.log_density_of(allowed[batch], y_K, rest)
    best = highest(scores, min(num_results, len(allowed)))
    return Neighbours(idx_C=allowed[best], log_density_C=scores[best], log_partition=log_sum_exp(scores / temperature))
