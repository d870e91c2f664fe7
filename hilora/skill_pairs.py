"""Which two adapters together explain a text that none explains alone, and whose skill it asks for first.

Words alone decide (`skill_contest`): what a sample says beyond the text counts against it as much as what it leaves
out, so that an adapter for something longer is no half. A pair is taken if it explains enough of the text, clearly more
than the best sample alone, and if its two skills are asked for one after the other, not interwoven.

An adapter may itself have been made for a combination. Its samples contain the wording of a half, but reading with it
brings the other half, too. Such adapters are known by the same measure: two others explain their samples better than
one, each brings something of its own, and the samples are longer than either's.

Where the constants come from: docs/experiments.md, "two skills, one after the other".

Shapes: C adapters, K compared ones, M samples, G grams of a text, A and B those that one of two samples has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import GramIds, GramSpots, SampleGrams, gram_spots
from hilora.covariance import FloatArray
from hilora.skill_contest import Contestant, gram_lengths, hold_contest

MIN_EXPLAINED = 0.4
"""What two adapters explain more than of a text: new words for an old task stay far below."""
MIN_GAIN = 1.1
"""Times what the best one explains."""
MIN_ORDER = 0.8
"""Share of the pairs of grams, one of each skill's own, that stand in one order."""
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
class PairMemory:
    """What was worked out about adapters by the weights and rivals of one fit, by their samples.

    By samples rather than places: those of adapters that came after the fit mean others with every extension of it.
    """

    is_combination: dict[SampleGrams, bool] = field(default_factory=dict[SampleGrams, bool])
    lengths: dict[SampleGrams, FloatArray] = field(default_factory=dict[SampleGrams, FloatArray])
    """`gram_lengths` of each."""

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
        self._squares_G = weights_G * weights_G
        self._rivals_of = rivals_of
        self._memory = memory
        self._contestant_of = cache(self._contestant)

    def find(self, text: str, ids_G: GramIds, places_C: NDArray[np.intp]) -> SkillPair | None:
        """The pair for a text that no adapter explains; None if no two do either.

        Args:
            text: what is asked.
            ids_G: its grams (`gram_ids`).
            places_C: the adapters that may be chosen.
        """
        contest = hold_contest(
            self._contestants(places_C), ids_G, self._squares_G, least=MIN_EXPLAINED, least_gain=MIN_GAIN
        )
        if contest is None:
            return None
        joint_KK = contest.joint_KK.copy()
        while True:
            pair = divmod(int(joint_KK.argmax()), len(joint_KK))
            if joint_KK[pair] <= 0.0:
                return None
            combined = [one for one in pair if self.is_combination(contest.contestants[one].place)]
            if not combined:
                break
            joint_KK[combined, :] = joint_KK[:, combined] = 0.0
        in_order = self._share_in_order(gram_spots(text), *(contest.best_sample(one) for one in pair))
        first, second = pair if in_order >= 0.5 else pair[::-1]
        if max(in_order, 1.0 - in_order) < MIN_ORDER:
            return None
        return SkillPair(
            first=contest.contestants[first].place,
            second=contest.contestants[second].place,
            explained=float(joint_KK[pair]),
            gain=float(joint_KK[pair] / contest.alone_K[0]),
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
        contestants = self._contestants(rivals)
        asked = np.unique(np.linspace(0, grams.num_samples - 1, _NUM_ASKED_SAMPLES).astype(np.intp))
        against = np.zeros(3, dtype=np.intp)
        for ordinal in asked:
            against += ~self._signs_of_two(grams.sample(int(ordinal)), contestants)
            if 2 * against.max() >= len(asked):  # what the other samples say changes nothing
                return False
        return True

    def _signs_of_two(self, ids_G: GramIds, rivals: Sequence[Contestant]) -> NDArray[np.bool_]:
        """Of a sample: do two others explain it better than one, does each bring something, is it longer than both?"""
        contest = hold_contest(rivals, ids_G, self._squares_G)
        if contest is None:
            return np.zeros(3, dtype=np.bool_)
        pair = divmod(int(contest.joint_KK.argmax()), len(contest.joint_KK))
        longer = contest.lengths_K[list(pair)].max()
        return np.array(
            [
                contest.joint_KK[pair] > _COMBINED_GAIN * contest.alone_K[0],
                contest.least_own_KK[pair] > _COMBINED_SHARE,
                self._squares_G.take(ids_G).sum(dtype=np.float64) > _COMBINED_LENGTH * longer,
            ]
        )

    def _contestants(self, places: NDArray[np.intp]) -> list[Contestant]:
        """Those whose samples are known."""
        found = [self._contestant_of(place) for place in places.tolist()]
        return [one for one in found if one is not None]

    def _contestant(self, place: int) -> Contestant | None:
        grams = self._grams_of(place)
        if grams is None or not grams.num_samples:
            return None
        lengths_M = self._memory.lengths.get(grams)
        if lengths_M is None:
            lengths_M = self._memory.lengths[grams] = gram_lengths(grams, self._squares_G)
        return Contestant(place=place, grams=grams, lengths_M=lengths_M)

    def _share_in_order(self, spots: GramSpots, first: GramIds, second: GramIds) -> float:
        """How surely the first one's own grams stand before the second one's: 1 always, 0 never, 0.5 interwoven."""
        has_first_G, has_second_G = np.isin(spots.ids_G, first), np.isin(spots.ids_G, second)
        own_A, own_B = has_first_G & ~has_second_G, has_second_G & ~has_first_G
        weights_G = self._squares_G.take(spots.ids_G).astype(np.float64)
        weights_A, weights_B = weights_G[own_A], weights_G[own_B]
        total = float(weights_A.sum() * weights_B.sum())
        if not total:
            return 0.5
        centres_A, centres_B = spots.centres_G[own_A], spots.centres_G[own_B]
        before_AB = (centres_A[:, None] < centres_B) + 0.5 * (centres_A[:, None] == centres_B)
        return float(weights_A @ before_AB @ weights_B) / total
