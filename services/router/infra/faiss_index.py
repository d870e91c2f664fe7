"""A pool's Gaussians as a FAISS index: exact, or a shortlist of which every adapter is scored exactly.

`EXACT` keeps the vectors of `InnerProductForm` in float32. `BYTE` keeps them in bytes, reads a quarter of the memory,
and is exact all the same: how much rounding took from any stored vector is known, so it can be proved that no adapter
outside the shortlist belongs into the answer; where the proof fails, everything is scored. `IVF` looks into the cells
of a k-means that are nearest in the space of the means and finds nearly all. Every result is scored again in float64.

Shapes: L adapters, K coordinates, C found ones.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import NOBODY, GaussianIndex, Neighbours, highest, log_sum_exp
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.faiss_cells import FaissCells
from services.router.infra.inner_product_form import InnerProductForm
from services.router.infra.partition_estimate import PartitionEstimate
from services.router.pool_index import IndexKind

_SPARE_RESULTS = 16
"""Results beyond those wanted: rounding may change the order near the end, and equal ones must all be seen."""
_SHORTLIST = 256
"""Adapters that are scored exactly where the others' share of the posterior is estimated."""
_BATCH = 8192
_SEED = 20_251_012

_SearchParameters: Any = faiss.SearchParameters
_IDSelectorBitmap: Any = faiss.IDSelectorBitmap
"""Both take in Python what the types generated from C++ do not know: fields by keyword, and arrays."""


class FlatFaissIndex:
    """Implements `GaussianIndex` by looking at every adapter: `EXACT` or `BYTE`.

    Args:
        gaussians: the pool, with at least one coordinate.
        kind: `EXACT` also has an exact partition; `BYTE` estimates it.
    """

    def __init__(self, gaussians: WhitenedGaussians, *, kind: IndexKind) -> None:
        self._gaussians = gaussians
        self._kind = kind
        in_bytes = kind is IndexKind.BYTE
        form = InnerProductForm(gaussians, in_bytes=in_bytes)
        size = form.vectors_LV.shape[1]
        self._index: Any = (
            faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
            if in_bytes
            else faiss.IndexFlatIP(size)
        )
        # At once: added in parts, FAISS would keep room for half as many again.
        self._index.add(form.vectors_LV)
        self._estimate = PartitionEstimate(gaussians, seed=_SEED) if in_bytes else None
        # FAISS has a copy; the view of it serves where all scores are needed.
        self._vectors_LV = form.vectors_LV = self._view(size)
        self._form = form

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
        least_wanted = _SHORTLIST if self._estimate is not None else 0
        num_wanted = min(max(num_results + _SPARE_RESULTS, least_wanted), num_allowed)
        if num_results <= 0 or (self._estimate is not None and num_allowed <= self._estimate.num_sampled):
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        question_V, offset = self._form.question(y_K, rest)
        selector = _selector(excluded, self.num_adapters)
        parameters = None if selector is None else _SearchParameters(sel=selector)
        values, places = self._index.search(question_V[None], num_wanted, params=parameters)
        found = places[0].astype(np.intp)
        scores_C = self._gaussians.log_density_of(found, y_K, rest)
        order = _order(found, scores_C)
        most_outside = float(values[0].min()) + offset + self._form.bound.of(y_K)
        if num_wanted < num_allowed and most_outside >= scores_C[order[num_results - 1]]:
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        if self._estimate is not None:
            log_partition = self._estimate.log_partition(
                y_K, rest, temperature=temperature, best=found, best_scores=scores_C, excluded=excluded
            )
        else:
            scores_L = (self._vectors_LV @ question_V).astype(np.float64) + offset
            scores_L[found] = scores_C
            scores_L[excluded] = -np.inf
            log_partition = log_sum_exp(scores_L / temperature)
        best = order[:num_results]
        return Neighbours(idx_C=found[best], log_density_C=scores_C[best], log_partition=log_partition)

    def _view(self, size: int) -> NDArray[np.float32]:
        if self._estimate is not None:
            return np.zeros((0, size), dtype=np.float32)
        return faiss.rev_swig_ptr(self._index.get_xb(), self.num_adapters * size).reshape(self.num_adapters, size)


class CellFaissIndex:
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
        num_wanted = min(max(num_results + _SPARE_RESULTS, _SHORTLIST), num_allowed)
        # Cells say nothing about who may be found: where many may not, the nearest cells may hold nobody.
        selector = _selector(excluded, self.num_adapters)
        found = self._cells.nearest(y_K, num_wanted, selector=selector, in_all_cells=len(excluded) > num_allowed)
        if len(found) < num_wanted:
            found = self._cells.nearest(y_K, num_wanted, selector=selector, in_all_cells=True)
        scores_C = self._gaussians.log_density_of(found, y_K, rest)
        best = _order(found, scores_C)[:num_results]
        return Neighbours(
            idx_C=found[best],
            log_density_C=scores_C[best],
            log_partition=self._estimate.log_partition(
                y_K, rest, temperature=temperature, best=found, best_scores=scores_C, excluded=excluded
            ),
        )


def build_faiss_index(gaussians: WhitenedGaussians, kind: IndexKind) -> GaussianIndex:
    """The FAISS index of a kind.

    Args:
        gaussians: the pool, with at least one coordinate.
        kind: any but `DENSE`.
    """
    # Of this thread: building must leave the other processors to the requests.
    faiss.omp_set_num_threads(1)
    if kind is IndexKind.IVF:
        return CellFaissIndex(gaussians)
    return FlatFaissIndex(gaussians, kind=kind)


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


def _order(places: NDArray[np.intp], scores: FloatArray) -> NDArray[np.intp]:
    """By falling score, among equals the lower place first."""
    return np.lexsort((places, -scores))


def _selector(excluded: NDArray[np.intp], num_adapters: int) -> Any:
    """FAISS's form of "not these"; None if all may be found."""
    if not len(excluded):
        return None
    is_allowed_L = np.ones(num_adapters, dtype=np.bool_)
    is_allowed_L[excluded] = False
    return _IDSelectorBitmap(np.packbits(is_allowed_L, bitorder="little"))
