"""How much of a text the samples of some adapters explain, one alone and two of different adapters together.

With `w` the squared weight of each gram (`LexicalPool.weights_G`), `Q` the grams of the text and `m` those of a sample,

    e(m)    =  w(Q & m)^2 / (w(Q) w(m))                    how well one sample explains the text
    e(m,n)  =  w(Q & (m | n))^2 / (w(Q) w(m | n))          how well two of different adapters do

Both are squared cosines: what a sample says beyond the text counts against it as much as what it leaves out. Of each
adapter the sample that explains most takes part, and of the adapters the best `MAX_COMPARED`.

A router asks this of every text that no adapter explains, and looks up the grams of hundreds of samples for it. So it
is done by a compiled kernel where there is one; the NumPy form beside it says what that computes.

Shapes: C adapters, K compared ones, M samples, G grams of a text, N grams of all samples one after the other, W
distinct grams of some samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hilora import text_kernels
from hilora.character_grams import GramIds, SampleGrams, distinct_ids
from hilora.covariance import FloatArray
from hilora.gram_table import gram_table

MAX_COMPARED = 12
"""Adapters that are compared in pairs: those that explain most alone. The kernel's, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """An adapter that takes part."""

    place: int
    """In the pool."""
    grams: SampleGrams
    """One sample at least."""
    lengths_M: FloatArray
    """`w(m)` of each."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Contest:
    """The compared adapters' best samples against one text, those that explain most first."""

    contestants: tuple[Contestant, ...]
    ordinals: tuple[int, ...]
    """Of their best samples."""
    alone_K: FloatArray
    """`e(m)`."""
    lengths_K: FloatArray
    """`w(m)`."""
    joint_KK: FloatArray
    """`e(m, n)`; 0 on the diagonal."""
    least_own_KK: FloatArray
    """Share of the text that both explain and one of the two does not: the smaller of the two shares."""

    def best_sample(self, row: int) -> GramIds:
        """The grams of a compared adapter's sample."""
        return self.contestants[row].grams.sample(self.ordinals[row])


def gram_lengths(grams: SampleGrams, squares_G: NDArray[np.float32]) -> FloatArray:
    """`w(m)` of each of an adapter's samples, `[M]`; 0 of one without grams."""
    return _sums(squares_G.take(grams.ids_N), grams.lengths_M)


def hold_contest(
    contestants: Sequence[Contestant],
    ids_G: GramIds,
    squares_G: NDArray[np.float32],
    *,
    least: float = 0.0,
    least_gain: float = 0.0,
) -> Contest | None:
    """The contest for a text; None where fewer than two share anything with it, or no two explain enough.

    Args:
        contestants: in an order that decides between equal ones.
        ids_G: the text's grams (`gram_ids`).
        squares_G: `w` of every gram there is.
        least: what two have to explain more than together.
        least_gain: and more than how many times what the best one explains.
    """
    if text_kernels.native is None:
        return _held(contestants, ids_G, squares_G, least, least_gain)
    whose, figures = np.empty((2, MAX_COMPARED), dtype=np.int64), np.empty((2, MAX_COMPARED))
    joint, least_own = np.empty(MAX_COMPARED**2), np.empty(MAX_COMPARED**2)
    entrants = [(one.grams.ids_N, one.grams.lengths_M, one.lengths_M) for one in contestants]
    squares = squares_G.take(ids_G)
    num_compared = text_kernels.native.contest(
        entrants, ids_G, squares, squares_G, least, least_gain, whose, figures, joint, least_own
    )
    if not num_compared:
        return None
    shape = (num_compared, num_compared)
    return Contest(
        contestants=tuple(contestants[row] for row in whose[0, :num_compared].tolist()),
        ordinals=tuple(whose[1, :num_compared].tolist()),
        alone_K=figures[0, :num_compared],
        lengths_K=figures[1, :num_compared],
        joint_KK=joint[: num_compared**2].reshape(shape),
        least_own_KK=least_own[: num_compared**2].reshape(shape),
    )


def _held(
    contestants: Sequence[Contestant], ids_G: GramIds, squares_G: NDArray[np.float32], least: float, least_gain: float
) -> Contest | None:
    """`hold_contest` in NumPy."""
    squares = squares_G.take(ids_G)
    length = float(squares.sum(dtype=np.float64))
    if not length or not contestants:
        return None
    ids_N = np.concatenate([one.grams.ids_N for one in contestants])
    sizes_M = np.concatenate([one.grams.lengths_M for one in contestants])
    lengths_M = np.concatenate([one.lengths_M for one in contestants])
    with gram_table(ids_G, squares) as asked_G:
        shared_M = _sums(asked_G.take(ids_N), sizes_M)
    alone_M = shared_M**2 / (np.where(lengths_M > 0.0, lengths_M, 1.0) * length)
    bounds = np.cumsum([0, *(one.grams.num_samples for one in contestants)], dtype=np.intp)
    ordinal_C = np.array([alone_M[start:stop].argmax() for start, stop in pairwise(bounds.tolist())], dtype=np.intp)
    best_C = bounds[:-1] + ordinal_C
    order_C = np.argsort(-alone_M[best_C], kind="stable")[:MAX_COMPARED]
    rows_K = order_C[alone_M[best_C[order_C]] > 0.0]
    if len(rows_K) < 2:
        return None
    best_K = best_C[rows_K]
    alone_K, lengths_K, shared_K = alone_M[best_K], lengths_M[best_K], shared_M[best_K]
    compared = [contestants[row] for row in rows_K.tolist()]
    ordinals = ordinal_C[rows_K].tolist()
    ids_W, has_KW = _presence([one.grams.sample(ordinal) for one, ordinal in zip(compared, ordinals, strict=True)])
    weights_W = squares_G.take(ids_W).astype(np.float64)
    with gram_table(ids_G, np.ones(len(ids_G), dtype=np.float32)) as is_asked_G:
        asked_W = weights_W * is_asked_G.take(ids_W)
    both_KK, both_asked_KK = (has_KW * weights_W) @ has_KW.T, (has_KW * asked_W) @ has_KW.T
    joint_KK = (shared_K[:, None] + shared_K - both_asked_KK) ** 2 / (
        (lengths_K[:, None] + lengths_K - both_KK) * length
    )
    least_own_KK = (np.minimum(shared_K[:, None], shared_K) - both_asked_KK) / length
    np.fill_diagonal(joint_KK, 0.0)
    np.fill_diagonal(least_own_KK, 0.0)
    if joint_KK.max() <= max(least, least_gain * float(alone_K[0])):
        return None
    return Contest(
        contestants=tuple(compared),
        ordinals=tuple(ordinals),
        alone_K=alone_K,
        lengths_K=lengths_K,
        joint_KK=joint_KK,
        least_own_KK=least_own_KK,
    )


def _presence(samples: Sequence[GramIds]) -> tuple[GramIds, FloatArray]:
    """All grams of some samples, rising, and which sample has which: 1 or 0, `[K, W]`."""
    ids_W = distinct_ids(np.concatenate(samples))
    has_KW = np.zeros((len(samples), len(ids_W)))
    for row, ids in enumerate(samples):
        has_KW[row, np.searchsorted(ids_W, ids)] = 1.0
    return ids_W, has_KW


def _sums(values_N: NDArray[np.float32], sizes_M: NDArray[np.uint32]) -> FloatArray:
    """The sum of each text's values; 0 of an empty text."""
    stops_M = np.cumsum(sizes_M, dtype=np.intp)
    if not sizes_M[-1]:
        values_N = np.append(values_N, np.float32(0.0))  # what empty texts at the end begin with
    sums_M = np.add.reduceat(values_N, stops_M - sizes_M, dtype=np.float64)
    # An empty text begins where another one does: what is found there is not its own.
    sums_M[sizes_M == 0] = 0.0
    return sums_M
