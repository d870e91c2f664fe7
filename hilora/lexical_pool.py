"""The lexical score: how much the wording of a text is that of an adapter's samples, against that of all others'.

Let `n_ig` be in how many of adapter i's samples gram g occurs, and `f_g` the number of adapters in which it occurs at
all. With

    w_g = 1 + ln((1 + L) / (1 + f_g))      s_i = unit vector of (n_ig w_g)_g      c = unit vector of sum_i s_i

the score of a text with the grams Q, `q = (w_g)_{g in Q}`, is the part of `s_i` that is not common to all adapters,
turned into a unit vector, against the text:

    score_i  =  < q, s_i - <s_i, c> c >  /  ( sqrt(1 - <s_i, c>^2)  sqrt(|q|) )

0 means "as any other adapter's text". Without the common part taken out, what every English sentence has in common
decides. The square root of `|q|` lets long texts say more than short ones, but less than in proportion: neighbouring
grams are not independent. Every choice here is argued in docs/experiments.md.

Shapes: L adapters, C scored ones, W grams kept of an adapter, G distinct grams of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hilora import text_kernels
from hilora.character_grams import NUM_GRAMS, GramCounts, GramIds, SampleGrams, counts_of_each
from hilora.covariance import FloatArray
from hilora.gram_table import gram_table

MAX_KEPT_GRAMS = 1024
"""Most grams kept of one adapter, those with the largest `n_ig w_g`: 3 KB. The rest is noise rather than signal."""

_LARGEST_COUNT = 255
_LEAST_OWN = 1e-3
"""Least share of its length that an adapter's vector has beside the common part: two adapters with the same samples
have none."""

_BLOCK = 512
"""Adapters that are taken together. Thousands one by one would keep the interpreter busy while requests wait for it;
array operations of this size leave it to them, and none holds it for long."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalRows:
    """What is kept of some adapters."""

    ids_LW: GramIds
    """Kept grams; after the last one any."""
    counts_LW: NDArray[np.uint8]
    """`n_ig`, scaled down where it is larger than a byte holds; 0 after the last one."""
    scales_L: NDArray[np.float32]
    """1 over `|(n_ig w_g)_g| sqrt(1 - <s_i, c>^2)`; 0 for adapters whose texts are not known."""
    commons_L: NDArray[np.float32]
    """`<s_i, c> / sqrt(1 - <s_i, c>^2)`."""

    def __len__(self) -> int:
        return len(self.scales_L)

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return self.ids_LW.nbytes + self.counts_LW.nbytes + self.scales_L.nbytes + self.commons_L.nbytes

    def scores(
        self, ids_G: GramIds, idx_C: NDArray[np.intp], weights_G: NDArray[np.float32], common_G: NDArray[np.float32]
    ) -> FloatArray:
        """The lexical score of some of them, `[C]`, in single precision.

        Args:
            ids_G: the text's grams, each once.
            idx_C: their places.
            weights_G: `w_g` of every gram there is.
            common_G: `c_g w_g` of every gram.
        """
        scores_C = np.empty(len(idx_C))
        if text_kernels.native is not None:
            text_kernels.native.lexical_scores(
                self.ids_LW,
                self.counts_LW,
                self.ids_LW.shape[1],
                self.scales_L,
                self.commons_L,
                np.ascontiguousarray(idx_C, dtype=np.int64),
                ids_G,
                weights_G,
                common_G,
                scores_C,
            )
            return scores_C
        weights = weights_G[ids_G]
        squares = weights * weights
        length = np.sqrt(squares.sum(dtype=np.float64)) or 1.0
        common = common_G[ids_G].sum(dtype=np.float64)
        # n_ig stands without w_g, so that the text brings both factors.
        with gram_table(ids_G, squares) as squares_G:
            counts_CW = self.counts_LW[idx_C].astype(np.float32)
            products_C = np.einsum("cw,cw->c", squares_G.take(self.ids_LW[idx_C]), counts_CW, dtype=np.float64)
        scores_C[:] = (products_C * self.scales_L[idx_C] - common * self.commons_L[idx_C]) / np.sqrt(length)
        # Single precision, so that rows that are equal have a spread of exactly 0.
        return scores_C.astype(np.float32).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalPool:
    """The wordings of a fitted pool. Immutable and safe to share between threads."""

    weights_G: NDArray[np.float32]
    """`w_g` of every gram there is."""
    common_G: NDArray[np.float32]
    """`c_g w_g`."""
    rows: LexicalRows
    """Of the fitted adapters."""
    added: LexicalRows | None = None
    """Of those that came after them; apart, or each arrival would copy what thousands of others have."""

    def __len__(self) -> int:
        return len(self.rows) + (0 if self.added is None else len(self.added))

    @property
    def num_bytes(self) -> int:
        """Memory that the rows take."""
        return self.rows.num_bytes + (0 if self.added is None else self.added.num_bytes)

    @classmethod
    def fit(cls, counts: Sequence[GramCounts | None]) -> LexicalPool:
        """Learn what is common and what is not.

        Args:
            counts: of every adapter, by place; None for one whose texts are not known.
        """
        blocks = [_Block.of(counts[start : start + _BLOCK]) for start in range(0, len(counts), _BLOCK)]
        num_known = sum(found is not None for found in counts)
        frequencies_G = np.zeros(NUM_GRAMS)
        for block in blocks:
            frequencies_G += np.bincount(block.ids_N, minlength=NUM_GRAMS)
        weights_G = (1.0 + np.log((1.0 + num_known) / (1.0 + frequencies_G))).astype(np.float32)
        common_G = np.zeros(NUM_GRAMS)
        for block in blocks:
            vectors_N = block.numbers_N * weights_G[block.ids_N].astype(np.float64)
            vectors_N /= np.repeat(block.norms_of(vectors_N), block.lengths_K)
            common_G += np.bincount(block.ids_N, weights=vectors_N, minlength=NUM_GRAMS)
        common_G /= float(np.linalg.norm(common_G)) or 1.0
        return cls(
            weights_G=weights_G,
            common_G=(common_G * weights_G).astype(np.float32),
            rows=_rows(counts, weights_G=weights_G, common_G=common_G),
        )

    def extended(self, newcomers: Sequence[SampleGrams | None]) -> LexicalPool:
        """The same weights and common part with adapters after the fitted ones; earlier newcomers are forgotten."""
        common_G = np.divide(self.common_G, self.weights_G, dtype=np.float64)
        return replace(self, added=_rows(counts_of_each(newcomers), weights_G=self.weights_G, common_G=common_G))

    def scores(self, ids_G: GramIds, idx_C: NDArray[np.intp]) -> FloatArray:
        """The lexical score of one text under some adapters, `[C]`; 0 where an adapter's texts are not known.

        Args:
            ids_G: the text's grams (`gram_ids`).
            idx_C: the adapters' places.
        """
        is_added_C = idx_C >= len(self.rows)
        if self.added is None or not is_added_C.any():
            return self.rows.scores(ids_G, idx_C, self.weights_G, self.common_G)
        scores_C = np.empty(len(idx_C))
        for rows, at_C, first in ((self.rows, ~is_added_C, 0), (self.added, is_added_C, len(self.rows))):
            scores_C[at_C] = rows.scores(ids_G, idx_C[at_C] - first, self.weights_G, self.common_G)
        return scores_C


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Block:
    """The grams of neighbouring adapters, one after the other; K of them have any, N grams together."""

    ids_N: GramIds
    numbers_N: NDArray[np.uint32]
    places_K: NDArray[np.intp]
    """Places in the block."""
    starts_K: NDArray[np.intp]
    lengths_K: NDArray[np.intp]

    @classmethod
    def of(cls, counts: Sequence[GramCounts | None]) -> _Block:
        known = [(place, found) for place, found in enumerate(counts) if found is not None and len(found[0])]
        lengths_K = np.array([len(ids) for _, (ids, _) in known], dtype=np.intp)
        return cls(
            ids_N=np.concatenate([np.zeros(0, dtype=np.uint16), *(ids for _, (ids, _) in known)]),
            numbers_N=np.concatenate([np.zeros(0, dtype=np.uint32), *(numbers for _, (_, numbers) in known)]),
            places_K=np.array([place for place, _ in known], dtype=np.intp),
            starts_K=np.cumsum(lengths_K) - lengths_K,
            lengths_K=lengths_K,
        )

    def sums_of(self, values_N: FloatArray) -> FloatArray:
        """`[K]`, over each adapter's grams."""
        return np.add.reduceat(values_N, self.starts_K) if len(self.starts_K) else np.zeros(0)

    def norms_of(self, vectors_N: FloatArray) -> FloatArray:
        """Lengths of the adapters' vectors, `[K]`."""
        return np.sqrt(self.sums_of(vectors_N * vectors_N))


def _rows(counts: Sequence[GramCounts | None], *, weights_G: NDArray[np.float32], common_G: FloatArray) -> LexicalRows:
    width = max([1, *(min(len(found[0]), MAX_KEPT_GRAMS) for found in counts if found is not None)])
    ids_LW = np.zeros((len(counts), width), dtype=np.uint16)
    counts_LW = np.zeros((len(counts), width), dtype=np.uint8)
    scales_L = np.zeros(len(counts), dtype=np.float32)
    commons_L = np.zeros(len(counts), dtype=np.float32)
    for start in range(0, len(counts), _BLOCK):
        block = _Block.of(
            [None if one is None else _kept(*one, weights_G=weights_G) for one in counts[start : start + _BLOCK]]
        )
        vectors_N = block.numbers_N * weights_G[block.ids_N].astype(np.float64)
        norms_K = block.norms_of(vectors_N)
        along_common_K = block.sums_of(vectors_N * common_G[block.ids_N]) / norms_K
        own_K = np.maximum(np.sqrt(np.maximum(1.0 - along_common_K**2, 0.0)), _LEAST_OWN)
        places_K = start + block.places_K
        scales_L[places_K] = 1.0 / (norms_K * own_K)
        commons_L[places_K] = along_common_K / own_K
        places_N = np.repeat(places_K, block.lengths_K)
        columns_N = np.arange(len(block.ids_N)) - np.repeat(block.starts_K, block.lengths_K)
        ids_LW[places_N, columns_N] = block.ids_N
        counts_LW[places_N, columns_N] = block.numbers_N
    return LexicalRows(ids_LW=ids_LW, counts_LW=counts_LW, scales_L=scales_L, commons_L=commons_L)


def _kept(ids: GramIds, numbers: NDArray[np.uint32], *, weights_G: NDArray[np.float32]) -> GramCounts:
    """The grams of largest weight, rising, with counts that a byte holds."""
    if len(ids) > MAX_KEPT_GRAMS:
        # Equal ones go by their number, so that every machine keeps the same.
        best = np.sort(np.argsort(-(numbers * weights_G[ids]), kind="stable")[:MAX_KEPT_GRAMS])
        ids, numbers = ids[best], numbers[best]
    largest = int(numbers.max(initial=0))
    if largest > _LARGEST_COUNT:
        numbers = np.maximum(np.rint(numbers * (_LARGEST_COUNT / largest)), 1.0).astype(np.uint32)
    return ids, numbers
