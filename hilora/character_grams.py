"""The letters of a text: which short character sequences occur in it, as hashed numbers.

An embedding says what a text is about; it forgets how the text is written. Sequences of one to three characters keep
just that: formats, fixed phrases, names. Whether a sequence occurs counts, not how often: a word that one text repeats
says no more than one that stands there once.

Shapes: G distinct grams of one text, N grams of several texts one after the other, M texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hilora import text_kernels

GRAM_SCHEME = "char-1-3/1"
"""Names how texts become grams. Grams of another scheme mean something else and must not be compared."""

NUM_GRAMS = 2**16
"""Numbers that a gram can have: two bytes each."""

MAX_GRAM_CHARACTERS = 4096
"""What lies beyond in a text is not looked at."""

GramIds = NDArray[np.uint16]
GramCounts = tuple[GramIds, NDArray[np.uint32]]
"""The grams of an adapter's samples, rising, and how many of them have each (`SampleGrams.counts`)."""

_LENGTHS = (1, 2, 3)
_COUNTED_TOGETHER = 64
"""Adapters whose grams are sorted at once: what the processor keeps near."""
_SPACES = re.compile(r"[^\S\n]+")
_BREAKS = re.compile(r" ?\n[ \n]*")
_FIRST, _LAST = "\x02", "\x03"
"""Stand before and after every text: how it begins and ends says much of its kind."""
_PRIME = np.uint32(0x01000193)
_MIX_1, _MIX_2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def gram_ids(text: str) -> GramIds:
    """The distinct grams of a text, rising, `[G]`; none for an empty text.

    Case makes no difference, nor does the amount of white space; that a line ends does. Equal on every machine.
    """
    points = _points(text)
    if text_kernels.native is None:
        return distinct_ids(_scattered(np.concatenate(_hashes(points))))
    ids = np.empty(len(_LENGTHS) * len(points), dtype=np.uint16)
    return ids[: text_kernels.native.gram_ids(points, ids)]


def distinct_ids(ids_N: GramIds) -> GramIds:
    """Every gram among some once, rising."""
    # Stable, for two bytes, means by their digits: half of the comparisons would be guessed wrong.
    sorted_N = np.sort(ids_N, kind="stable")
    return np.concatenate((sorted_N[:1], sorted_N[1:][sorted_N[1:] != sorted_N[:-1]]))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class GramSpots:
    """The grams of a text with where they stand in it."""

    ids_G: GramIds
    """As `gram_ids` gives them."""
    centres_G: NDArray[np.float64]
    """The middle between where a gram first begins and where it last ends, in characters."""


def gram_spots(text: str) -> GramSpots:
    """The distinct grams of a text, rising, and where each stands."""
    hashes = _hashes(_points(text))
    ids_N = _scattered(np.concatenate(hashes))
    starts_N = np.concatenate([np.arange(len(of_length)) for of_length in hashes])
    stops_N = starts_N + np.repeat(_LENGTHS, [len(of_length) for of_length in hashes])
    ids_G = distinct_ids(ids_N)
    if not len(ids_G):
        return GramSpots(ids_G=ids_G, centres_G=np.zeros(0))
    by_id = np.argsort(ids_N, kind="stable")
    firsts = np.searchsorted(ids_N[by_id], ids_G)
    first_G, last_G = np.minimum.reduceat(starts_N[by_id], firsts), np.maximum.reduceat(stops_N[by_id], firsts)
    return GramSpots(ids_G=ids_G, centres_G=(first_G + last_G) / 2)


def _points(text: str) -> NDArray[np.uint32]:
    """The characters that are looked at; none for an empty text, three at least for any other."""
    plain = _BREAKS.sub("\n", _SPACES.sub(" ", text[:MAX_GRAM_CHARACTERS])).strip().lower()
    if not plain:
        return np.zeros(0, dtype=np.uint32)
    # Lower case may be longer than the text: the bound holds for what is looked at.
    plain = f"{_FIRST}{plain[:MAX_GRAM_CHARACTERS]}{_LAST}"
    # The byte order is part of the scheme. A lone surrogate is no character, but a client may send one.
    return np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32)


def _hashes(points: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
    """The grams of each length in their order."""
    found: list[NDArray[np.uint32]] = []
    for length in _LENGTHS:
        num_grams = max(len(points) - length + 1, 0)
        hashes = points[:num_grams] ^ np.uint32(length * int(_PRIME))
        for offset in range(1, length):
            hashes *= _PRIME
            hashes ^= points[offset : offset + num_grams]
        found.append(hashes)
    return found


def _scattered(hashes: NDArray[np.uint32]) -> GramIds:
    """Sixteen bits that all bits of the hashes take part in (the finisher of MurmurHash3)."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint32(13)
    mixed *= _MIX_2
    return (mixed ^ (mixed >> np.uint32(16))).astype(np.uint16)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleGrams:
    """The grams of an adapter's sample texts: what the lexical score is computed from.

    Raises:
        ValueError: lengths that do not add up to the numbers.
    """

    ids_N: GramIds
    """Text after text, each text's rising."""
    lengths_M: NDArray[np.uint32]
    """Grams of each text."""

    def __post_init__(self) -> None:
        if self.ids_N.ndim != 1 or self.lengths_M.ndim != 1 or int(self.lengths_M.sum()) != len(self.ids_N):
            raise ValueError(f"{len(self.ids_N)} grams do not belong to texts of {int(self.lengths_M.sum())}")

    @classmethod
    def of(cls, texts: Sequence[str]) -> SampleGrams:
        """Of some texts, in their order."""
        sets = [gram_ids(text) for text in texts]
        return cls(
            ids_N=np.concatenate([np.zeros(0, dtype=np.uint16), *sets]),
            lengths_M=np.array([len(ids) for ids in sets], dtype=np.uint32),
        )

    @property
    def num_samples(self) -> int:
        """M."""
        return len(self.lengths_M)

    @property
    def num_bytes(self) -> int:
        """Memory that they take."""
        return self.ids_N.nbytes + self.lengths_M.nbytes

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths_M, dtype=np.int64)])

    def sample(self, ordinal: int) -> GramIds:
        """The grams of one text."""
        return self.ids_N[self._starts[ordinal] : self._starts[ordinal + 1]]

    def counts(self, is_kept_M: NDArray[np.bool_] | None = None) -> GramCounts:
        """In how many of the texts each gram occurs: the grams that occur, rising, and the numbers.

        Args:
            is_kept_M: the texts that count; all of them without.
        """
        ids_N = self.ids_N if is_kept_M is None else self.ids_N[np.repeat(is_kept_M, self.lengths_M)]
        ids_G, counts_G = np.unique(ids_N, return_counts=True)
        return ids_G, counts_G.astype(np.uint32)


def counts_of_each(grams: Sequence[SampleGrams | None]) -> list[GramCounts | None]:
    """`SampleGrams.counts` of many adapters: together, for sorting each one's grams by itself is mostly calls.

    Args:
        grams: of each adapter; None where they are not known, and then None in the answer.
    """
    found: list[GramCounts | None] = []
    for start in range(0, len(grams), _COUNTED_TOGETHER):
        batch = grams[start : start + _COUNTED_TOGETHER]
        ids = [np.zeros(0, dtype=np.uint16) if one is None else one.ids_N for one in batch]
        owners_N = np.repeat(np.arange(len(batch), dtype=np.uint32), [len(one) for one in ids])
        keys_G, counts_G = np.unique(owners_N * np.uint32(NUM_GRAMS) + np.concatenate(ids), return_counts=True)
        bounds = np.searchsorted(keys_G, np.arange(len(batch) + 1, dtype=np.uint32) * np.uint32(NUM_GRAMS)).tolist()
        ids_G, counts_G = keys_G.astype(np.uint16), counts_G.astype(np.uint32)
        found += [
            None if one is None else (ids_G[first:last], counts_G[first:last])
            for one, first, last in zip(batch, bounds[:-1], bounds[1:], strict=True)
        ]
    return found
