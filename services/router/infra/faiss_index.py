"""A pool's Gaussians as a FAISS index for many adapters: a shortlist, of which every adapter is scored exactly.

`BYTE` keeps the vectors of `InnerProductForm` in bytes, reads a quarter of the memory that single precision takes, and
is exact all the same: how much rounding took from any stored vector is known, so it can be proved that no adapter
outside the shortlist belongs into the answer; where the proof fails, everything is scored. `IVF` looks into the cells
of a k-means that are nearest in the space of the means and finds nearly all. Every result is scored again in float64.

Shapes: L adapters, K coordinates, C found ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import NOBODY, Neighbours
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.faiss_cells import FaissCells
from services.router.infra.inner_product_form import InnerProductForm
from services.router.infra.partition_estimate import PartitionEstimate
from services.router.infra.shortlist import SPARE_RESULTS, is_proved, scored_one_by_one, scored_shortlist
from services.router.pool_index import IndexKind

_SHORTLIST = 256
"""Adapters that are scored exactly where the others' share of the posterior is estimated."""
_SEED = 20_251_012

_SearchParameters: Any = faiss.SearchParameters
_IDSelectorBitmap: Any = faiss.IDSelectorBitmap
"""Both take in Python what the types generated from C++ do not know: fields by keyword, and arrays."""


class ByteFaissIndex:
    """Implements `GaussianIndex` by looking at every adapter in bytes: `BYTE`. The partition is estimated.

    Args:
        gaussians: the pool, with at least one coordinate.
    """

    def __init__(self, gaussians: WhitenedGaussians) -> None:
        self._gaussians = gaussians
        form = InnerProductForm(gaussians)
        self._question, self._bound = form.question, form.bound
        size = form.vectors_LV.shape[1]
        self._num_added = _size_that_is_right(size) - size
        if self._num_added:
            form.vectors_LV = np.pad(form.vectors_LV, ((0, 0), (0, self._num_added)))
        self._index = _byte_index(size + self._num_added)
        # At once: added in parts, FAISS would keep room for half as many again.
        self._index.add(form.vectors_LV)
        # FAISS has a copy, a quarter of the size.
        form.vectors_LV = form.vectors_LV[:0].copy()
        self._estimate = PartitionEstimate(gaussians, seed=_SEED)

    @property
    def num_adapters(self) -> int:
        """See `GaussianIndex.num_adapters`."""
        return self._gaussians.num_adapters

    @property
    def kind(self) -> str:
        """See `GaussianIndex.kind`."""
        return IndexKind.BYTE.value

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
        if num_results <= 0 or num_allowed <= self._estimate.num_sampled:
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        num_wanted = min(max(num_results + SPARE_RESULTS, _SHORTLIST), num_allowed)
        question_V, offset = self._question(y_K, rest)
        selector = _selector(excluded, self.num_adapters)
        parameters = None if selector is None else _SearchParameters(sel=selector)
        if self._num_added:
            question_V = np.pad(question_V, (0, self._num_added))
        values, places = self._index.search(question_V[None], num_wanted, params=parameters)
        shortlist = scored_shortlist(self._gaussians, places[0].astype(np.intp), y_K, rest)
        most_outside = float(values[0].min()) + offset + self._bound.of(y_K) if num_wanted < num_allowed else -np.inf
        if not is_proved(shortlist, num_results=num_results, most_outside=most_outside):
            return scored_one_by_one(
                self._gaussians, y_K, rest, num_results=num_results, temperature=temperature, excluded=excluded
            )
        log_partition = self._estimate.log_partition(
            y_K,
            rest,
            temperature=temperature,
            best=shortlist.idx_C,
            best_scores=shortlist.scores_C,
            excluded=excluded,
        )
        return shortlist.neighbours(num_results, log_partition=log_partition)


def _byte_index(size: int) -> Any:
    return faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)


@cache
def _size_that_is_right(size: int) -> int:
    """The size, or the next one at which this processor's FAISS multiplies bytes with real numbers.

    Where a size suits its vector instructions, FAISS takes a kernel that rounds the question to whole numbers as well
    (1.15, multiples of 32 with AVX-512, of 16 with AVX2): products are off by half, and what is proved from them is
    wrong.

    Raises:
        RuntimeError: it multiplies wrongly at every size.
    """
    rng = np.random.default_rng(_SEED)
    for tried in (size, size + 16, size + 8, size + 1):
        stored_LV = rng.integers(-127, 128, size=(64, tried)).astype(np.float32)
        question_V = rng.standard_normal(tried).astype(np.float32)
        index = _byte_index(tried)
        index.add(stored_LV)
        values, places = index.search(question_V[None], len(stored_LV))
        if np.allclose(values[0], (stored_LV @ question_V)[places[0]], atol=1e-3 * float(np.abs(values).max())):
            return tried
    raise RuntimeError(f"FAISS multiplies wrongly on this processor at sizes from {size} on: use another index kind.")


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
