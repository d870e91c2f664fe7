"""A pool's Gaussians in FAISS's cells, for pools too large to be looked at as a whole.

A search looks into the cells of a k-means that are nearest in the space of the means and finds nearly all. Every result
is scored again in float64.

Shapes: L adapters, K coordinates, C found ones.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import NOBODY, Neighbours
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.faiss_cells import FaissCells
from services.router.infra.partition_estimate import PartitionEstimate
from services.router.infra.shortlist import SPARE_RESULTS, scored_one_by_one, scored_shortlist
from services.router.pool_index import IndexKind

_SHORTLIST = 256
"""Adapters that are scored exactly where the others' share of the posterior is estimated."""
_SEED = 20_251_012

_IDSelectorBitmap: Any = faiss.IDSelectorBitmap
"""Takes an array in Python, which the types generated from C++ do not know."""


class CellIndex:
    """Implements `GaussianIndex` by looking at a part of the adapters: `IVF`.

    Args:
        gaussians: the pool, with at least one coordinate.
    """

    def __init__(self, gaussians: WhitenedGaussians) -> None:
        self._gaussians = gaussians
        self._cells = FaissCells(gaussians, seed=_SEED)
        self._estimate = PartitionEstimate(gaussians, seed=_SEED)
        self._recall = self._cells.measured_recall(gaussians, shortlist=_SHORTLIST, seed=_SEED)

    @property
    def num_adapters(self) -> int:
        """See `GaussianIndex.num_adapters`."""
        return self._gaussians.num_adapters

    @property
    def kind(self) -> str:
        """See `GaussianIndex.kind`."""
        return IndexKind.IVF.value

    @property
    def recall(self) -> float:
        """See `GaussianIndex.recall`."""
        return self._recall

    def search(
        self, y_K: FloatArray, rest: float, *, num_results: int, temperature: float, excluded: NDArray[np.intp] = NOBODY
    ) -> Neighbours:
        """See `GaussianIndex.search`."""
        num_allowed = self.num_adapters - len(excluded)
        if min(num_results, num_allowed) <= 0 or num_allowed <= self._estimate.num_sampled:
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        num_wanted = min(max(num_results + SPARE_RESULTS, _SHORTLIST), num_allowed)
        # Cells say nothing about who may be found: where many may not, the nearest cells may hold nobody.
        selector = _selector(excluded, self.num_adapters)
        found = self._cells.nearest(y_K, num_wanted, selector=selector, in_all_cells=len(excluded) > num_allowed)
        if len(found) < num_wanted:
            found = self._cells.nearest(y_K, num_wanted, selector=selector, in_all_cells=True)
        shortlist = scored_shortlist(self._gaussians, found, y_K, rest)
        log_partition = self._estimate.log_partition(
            y_K,
            rest,
            temperature=temperature,
            best=shortlist.idx_C,
            best_scores=shortlist.scores_C,
            excluded=excluded,
        )
        return shortlist.neighbours(num_results, log_partition=log_partition)


def _selector(excluded: NDArray[np.intp], num_adapters: int) -> Any:
    """FAISS's form of "not these"; None if all may be found."""
    if not len(excluded):
        return None
    is_allowed_L = np.ones(num_adapters, dtype=np.bool_)
    is_allowed_L[excluded] = False
    return _IDSelectorBitmap(np.packbits(is_allowed_L, bitorder="little"))
