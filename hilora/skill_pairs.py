"""Which two adapters together explain a text that none explains alone, and whose skill it asks for first.

Words alone decide. With `w` the squared weight of each gram (`LexicalPool.weights_G`), `Q` the grams of the text and
`m` those of a sample text,

    e(m)    =  w(Q & m)^2 / (w(Q) w(m))                    how well one sample explains the text
    e(m,n)  =  w(Q & (m | n))^2 / (w(Q) w(m | n))          how well two of different adapters do

Both are squared cosines: what a sample says beyond the text counts against it as much as what it leaves out, so that an
adapter for something longer is no half. A pair is taken if it explains enough of the text, clearly more than the best
sample alone, and if its two skills are asked for one after the other, not interwoven.

An adapter may itself have been made for a combination. Its samples contain the wording of a half, but reading with it
brings the other half, too. Such adapters are known by the same measure: two others explain their samples better than
one, each brings something of its own, and the samples are longer than either's.

Where the constants come from: docs/experiments.md, "two skills, one after the other".

Shapes: C compared adapters, M their samples, G grams of a text, N grams of all those samples one after the other, W
distinct grams of some samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import GramIds, SampleGrams, gram_spots
from hilora.covariance import FloatArray
from hilora.gram_table import gram_table

MIN_EXPLAINED = 0.4
"""What two adapters explain of a text at least: new words for an old task stay far below."""
MIN_GAIN = 1.1
"""Times what the best one explains."""
MIN_ORDER = 0.8
"""Share of the pairs of grams, one of each skill's own, that stand in one order."""
_MAX_HALVES = 12
"""Adapters that are compared in pairs: those that explain most alone."""
_NUM_ASKED_SAMPLES = 5
"""Samples by which it is decided whether an adapter is a combination: each sign has to show in most of them."""
_COMBINED_GAIN, _COMBINED_SHARE, _COMBINED_LENGTH = 1.2, 0.2, 1.1
"""Of a combination's samples: gain by two others, what each of them alone explains, length beside the longer one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkillPair:
    """Two adapters by their places in the pool."""

    first: int
    """Whose skill the text asks for first."""
    second: int
    explained: float
    """How much of the text both explain, 0 to 1."""
    gain: float
    """Times what the best adapter explains alone."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Contest:
    """Some adapters' best samples against one text, those that explain most first."""

    places_C: NDArray[np.intp]
    lengths_C: FloatArray
    """`w(m)`."""
    alone_C: FloatArray
    """`e(m)`."""
    joint_CC: FloatArray
    """`e(m, n)`; 0 on the diagonal."""
    least_own_CC: FloatArray
    """Share of the text that both explain and one of the two does not: the smaller of the two shares."""
    ids_W: GramIds
    """The text's grams that some of the samples have."""
    has_CW: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PairMemory:
    """What was worked out about adapters by the weights and rivals of one fit, by their samples.

    By samples rather than places: those of adapters that came after the fit mean others with every extension of it.
    """

    is_combination: dict[SampleGrams, bool] = field(default_factory=dict[SampleGrams, bool])
    lengths: dict[SampleGrams, FloatArray] = field(default_factory=dict[SampleGrams, FloatArray])
    """`w(m)` of each sample."""

    def asked(self) -> frozenset[SampleGrams]:
        """Adapters of which it was asked whether they are combinations."""
        return frozenset(self.is_combination)


class SkillPairs:
    """Finds pairs in a fitted pool. Immutable but for what it remembers, and safe to share between threads.

    Args:
        grams_of: the grams of a place's samples; None where they are not known.
        weights_G: weight of every gram there is.
        rivals_of: places of the adapters that a place's own samples are compared with, its own not among them.
        memory: of the fit whose weights and rivals these are.
    """

    def __init__(
        self,
        grams_of: Callable[[int], SampleGrams | None],
        weights_G: NDArray[np.float32],
        *,
        rivals_of: Callable[[int], NDArray[np.intp]],
        memory: PairMemory,
    ) -> None:
        self._grams_of = grams_of
        self._squares_G = weights_G.astype(np.float64) ** 2
        self._rivals_of = rivals_of
        self._memory = memory

    def find(self, text: str, ids_G: GramIds, places_C: NDArray[np.intp]) -> SkillPair | None:
        """The pair for a text that no adapter explains; None if no two do either.

        Args:
            text: what is asked.
            ids_G: its grams (`gram_ids`).
            places_C: the adapters that may be chosen.
        """
        contest = self._contest(ids_G, places_C, least=MIN_EXPLAINED)
        if contest is None:
            return None
        joint_CC = contest.joint_CC.copy()
        explained, alone = float(joint_CC.max()), float(contest.alone_C.max())
        if explained < MIN_EXPLAINED or explained <= MIN_GAIN * alone:
            return None
        while True:
            pair = divmod(int(joint_CC.argmax()), len(joint_CC))
            if joint_CC[pair] <= 0.0:
                return None
            combined = [one for one in pair if self.is_combination(int(contest.places_C[one]))]
            if not combined:
                break
            joint_CC[combined, :] = joint_CC[:, combined] = 0.0
        spots = gram_spots(text)
        in_order = self._share_in_order(contest, spots.ids_G, spots.centres_G, *pair)
        first, second = pair if in_order >= 0.5 else pair[::-1]
        if max(in_order, 1.0 - in_order) < MIN_ORDER:
            return None
        return SkillPair(
            first=int(contest.places_C[first]),
            second=int(contest.places_C[second]),
            explained=float(joint_CC[pair]),
            gain=float(joint_CC[pair]) / alone,
        )

    def is_combination(self, place: int) -> bool:
        """Whether an adapter was made for what two others do one after the other; worked out once."""
        grams = self._grams_of(place)
        if grams is None or not grams.num_samples:
            return False
        found = self._memory.is_combination.get(grams)
        if found is None:
            found = self._memory.is_combination[grams] = self._looks_combined(grams, self._rivals_of(place))
        return found

    def _looks_combined(self, grams: SampleGrams, rivals: NDArray[np.intp]) -> bool:
        asked = np.unique(np.linspace(0, grams.num_samples - 1, _NUM_ASKED_SAMPLES).astype(np.intp))
        against = np.zeros(3, dtype=np.intp)
        for ordinal in asked:
            against += ~self._signs_of_two(grams.sample(int(ordinal)), rivals)
            if 2 * against.max() >= len(asked):  # what the other samples say changes nothing
                return False
        return True

    def _signs_of_two(self, ids_G: GramIds, rivals: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Of a sample: do two others explain it better than one, does each bring something, is it longer than both?"""
        contest = self._contest(ids_G, rivals)
        if contest is None:
            return np.zeros(3, dtype=np.bool_)
        pair = divmod(int(contest.joint_CC.argmax()), len(contest.joint_CC))
        longer = contest.lengths_C[list(pair)].max()
        return np.array(
            [
                contest.joint_CC[pair] > _COMBINED_GAIN * contest.alone_C.max(),
                contest.least_own_CC[pair] > _COMBINED_SHARE,
                self._squares_G[ids_G].sum() > _COMBINED_LENGTH * longer,
            ]
        )

    def _contest(self, ids_G: GramIds, places_C: NDArray[np.intp], *, least: float = 0.0) -> _Contest | None:
        """None where fewer than two adapters share anything with the text, or no two can explain `least` of it."""
        known = [
            (int(place), grams)
            for place in places_C
            if (grams := self._grams_of(int(place))) is not None and grams.num_samples
        ]
        squares_G = self._squares_G[ids_G]
        length = float(squares_G.sum())
        if len(known) < 2 or not length:
            return None
        ids_N = np.concatenate([grams.ids_N for _, grams in known])
        sizes_M = np.concatenate([grams.lengths_M for _, grams in known])
        ends_M = np.cumsum(sizes_M, dtype=np.intp)
        with gram_table(ids_G, squares_G) as asked_G:
            shared_M = _sums(asked_G.take(ids_N), sizes_M, ends_M)
        if _most_of_two(shared_M, [grams.num_samples for _, grams in known]) < least * length:
            # `e(m, n)` is at most the share of the text that both have together.
            return None
        lengths_M = np.concatenate([self._lengths(grams) for _, grams in known])
        alone_M = shared_M**2 / (np.where(lengths_M > 0.0, lengths_M, 1.0) * length)
        bounds = np.cumsum([0, *(grams.num_samples for _, grams in known)])
        best_C = np.array([start + int(alone_M[start:stop].argmax()) for start, stop in pairwise(bounds.tolist())])
        order = np.argsort(-alone_M[best_C], kind="stable")
        kept = [int(one) for one in order if alone_M[best_C[one]] > 0.0][:_MAX_HALVES]
        if len(kept) < 2:
            return None
        samples = best_C[kept]
        ids_W, has_CW = _presence([ids_N[ends_M[one] - sizes_M[one] : ends_M[one]] for one in samples])
        squares_W = self._squares_G[ids_W]
        is_asked_W = ids_G.take(np.searchsorted(ids_G, ids_W), mode="clip") == ids_W
        asked_CW = has_CW[:, is_asked_W].astype(np.float64)
        both_asked_CC = (asked_CW * squares_W[is_asked_W]) @ asked_CW.T
        both_CC = (has_CW * squares_W) @ has_CW.T.astype(np.float64)
        shared_C, lengths_C = shared_M[samples], lengths_M[samples]
        covered_CC = shared_C[:, None] + shared_C - both_asked_CC
        joint_CC = covered_CC**2 / ((lengths_C[:, None] + lengths_C - both_CC) * length)
        np.fill_diagonal(joint_CC, 0.0)
        return _Contest(
            places_C=np.array([known[one][0] for one in kept], dtype=np.intp),
            lengths_C=lengths_C,
            alone_C=alone_M[samples],
            joint_CC=joint_CC,
            least_own_CC=(np.minimum(shared_C[:, None], shared_C) - both_asked_CC) / length,
            ids_W=ids_W[is_asked_W],
            has_CW=has_CW[:, is_asked_W],
        )

    def _lengths(self, grams: SampleGrams) -> FloatArray:
        """`w(m)` of an adapter's samples; worked out once."""
        found = self._memory.lengths.get(grams)
        if found is None:
            ends_M = np.cumsum(grams.lengths_M, dtype=np.intp)
            found = self._memory.lengths[grams] = _sums(self._squares_G.take(grams.ids_N), grams.lengths_M, ends_M)
        return found

    def _share_in_order(
        self, contest: _Contest, ids_G: GramIds, centres_G: FloatArray, first: int, second: int
    ) -> float:
        """How surely the first one's own grams stand before the second one's: 1 always, 0 never, 0.5 interwoven."""
        own = []
        for one, other in ((first, second), (second, first)):
            ids_W = contest.ids_W[contest.has_CW[one] & ~contest.has_CW[other]]
            own.append((centres_G[np.searchsorted(ids_G, ids_W)], self._squares_G[ids_W]))
        (centres_A, weights_A), (centres_B, weights_B) = own
        total = float(weights_A.sum() * weights_B.sum())
        if not total:
            return 0.5
        before_AB = (centres_A[:, None] < centres_B) + 0.5 * (centres_A[:, None] == centres_B)
        return float(weights_A @ before_AB @ weights_B) / total


def _sums(values_N: FloatArray, sizes_M: NDArray[np.uint32], ends_M: NDArray[np.intp]) -> FloatArray:
    """The sum of each text's values; 0 of an empty text."""
    if not sizes_M[-1]:
        values_N = np.append(values_N, 0.0)  # what empty texts at the end begin with
    # An empty text begins where another one does: what is found there is not its own.
    return np.where(sizes_M > 0, np.add.reduceat(values_N, (ends_M - sizes_M).astype(np.intp)), 0.0)


def _most_of_two(shared_M: FloatArray, counts: Sequence[int]) -> float:
    """The largest sum of what a sample of one adapter and one of another share with a text; two adapters at least."""
    best = np.maximum.reduceat(shared_M, np.cumsum([0, *counts[:-1]]))
    return float(np.partition(best, -2)[-2:].sum())


def _presence(samples: Sequence[GramIds]) -> tuple[GramIds, NDArray[np.bool_]]:
    """All grams of some samples, rising, and which sample has which."""
    ids_W = np.unique(np.concatenate(samples))
    has_CW = np.zeros((len(samples), len(ids_W)), dtype=np.bool_)
    for row, ids in enumerate(samples):
        has_CW[row, np.searchsorted(ids_W, ids)] = True
    return ids_W, has_CW
