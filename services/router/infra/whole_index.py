"""A pool's Gaussians, all of which are looked at for every text: roughly first, the best of them again in float64.

How far a rough score can lie from the exact one is known, so it can be proved that no adapter outside the shortlist
belongs into the answer; where the proof fails, everything is scored in float64. The same pass gives every adapter's
share of the posterior.

Shapes: L adapters, K coordinates, C found ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import NOBODY, Neighbours, highest, log_sum_exp_of_many
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.shortlist import SPARE_RESULTS, is_proved, scored_one_by_one, scored_shortlist
from services.router.pool_index import IndexKind


class Scores(Protocol):
    """Rough scores of all adapters of a pool."""

    @property
    def num_shortlisted(self) -> int:
        """How many of the best ones should be scored again, at least."""
        ...

    def of(self, y_K: FloatArray, rest: float) -> FloatArray:
        """The scores `[L]`, a new array, of a text with coordinates `y_K` and a remainder of squared length `rest`."""
        ...

    def error(self, y_K: FloatArray) -> float:
        """How far any of them can lie from the exact score."""
        ...


class WholeIndex:
    """Implements `GaussianIndex` by looking at every adapter: `EXACT` and `BYTE`.

    Args:
        gaussians: the pool, with at least one coordinate.
        kind: what it calls itself.
        scores: the pool's rough scores.
    """

    def __init__(self, gaussians: WhitenedGaussians, *, kind: IndexKind, scores: Scores) -> None:
        self._gaussians = gaussians
        self._kind = kind
        self._scores = scores

    @property
    def num_adapters(self) -> int:
        """See `GaussianIndex.num_adapters`."""
        return self._gaussians.num_adapters

    @property
    def kind(self) -> str:
        """See `GaussianIndex.kind`."""
        return self._kind.value

    @property
    def recall(self) -> float:
        """See `GaussianIndex.recall`."""
        return 1.0

    def search(
        self, y_K: FloatArray, rest: float, *, num_results: int, temperature: float, excluded: NDArray[np.intp] = NOBODY
    ) -> Neighbours:
        """See `GaussianIndex.search`."""
        num_allowed = self.num_adapters - len(excluded)
        num_results = min(num_results, num_allowed)
        num_wanted = min(max(num_results + SPARE_RESULTS, self._scores.num_shortlisted), num_allowed)
        scores_L = self._scores.of(y_K, rest)
        scores_L[excluded] = -np.inf
        found = highest(scores_L, num_wanted)
        most_outside = -np.inf
        if 0 < num_wanted < num_allowed:
            most_outside = float(scores_L[found[-1]]) + self._scores.error(y_K)
        shortlist = scored_shortlist(self._gaussians, found, y_K, rest)
        if not is_proved(shortlist, num_results=num_results, most_outside=most_outside):
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        scores_L[shortlist.idx_C] = shortlist.scores_C
        return shortlist.neighbours(num_results, log_partition=log_sum_exp_of_many(scores_L, temperature=temperature))
