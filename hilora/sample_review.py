"""Which adapters describe themselves in a way that no text should be routed by.

Whoever may register an adapter may also say what it is for. Two ways of saying so are after other adapters' requests:
samples that are another adapter's word for word, and samples of everything. An adapter that is doubted can be named by
anybody; it is not *chosen* unless somebody vouches for it.

    copied      at least half of the samples are the very texts of one adapter that came earlier
    of many     the samples scatter widely (1.5 times the pool's median), no more than a quarter of them are nearer to
                the adapter's own mean, taken without the sample, than to another's, and the others are shared out
                among many adapters (as many as half the samples, at least six)

Both limits are ours [ours]: on the project's testbeds honest adapters of several skills lose samples to five others
at most, one that claims everything to fourteen of twenty and more (docs/experiments.md). What this cannot see is a
paraphrase: new samples of another adapter's task are what an honest second adapter has, too.

Shapes: L adapters, M samples of one, E embedding dimension.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray

COPIED_SHARE = 0.5
OWN_SHARE = 0.25
TAKER_SHARE = 0.5
MIN_TAKERS = 6
WIDE = 1.5
_KEY_STEPS = 1000.0
"""Equal texts get embeddings that differ in the seventh digit, by the batch they were in; a key holds three."""
_KEY_NUMBERS = 48


class DoubtKind(StrEnum):
    """Why an adapter is not chosen; stable codes."""

    COPIED_SAMPLES = "samples_copied"
    SAMPLES_OF_MANY = "samples_of_many"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class DescribedAdapter:
    """An adapter and its samples."""

    adapter_name: str
    arrived_at: float
    """Of two equal descriptions the later one is the copy; names decide between equal times."""
    samples_ME: NDArray[np.float32]
    """Unit vectors, at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """What speaks against choosing an adapter."""

    kind: DoubtKind
    message: str
    """One sentence for a person."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Known:
    """What is compared of an adapter's samples."""

    samples_ME: NDArray[np.float32]
    """Kept, so that nothing else comes to have its identity."""
    keys: tuple[int, ...]
    """One for each different text."""
    mean_E: FloatArray
    scatter: float
    """Mean square of the distances from the mean."""

    @classmethod
    def of(cls, samples_ME: NDArray[np.float32]) -> _Known:
        mean_E = samples_ME.mean(axis=0, dtype=np.float64)
        # Of unit vectors: 1 - |mean|^2.
        scatter = max(1.0 - float((mean_E**2).sum()), 0.0)
        return cls(samples_ME=samples_ME, keys=_keys(samples_ME), mean_E=mean_E, scatter=scatter)


class SampleReview:
    """Reviews a pool again and again as it changes: samples that were there at the last review are not read anew.

    Used by one thread at a time. Holds some 4 KB an adapter.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def doubts_about(self, pool: Sequence[DescribedAdapter]) -> dict[str, Doubt]:
        """See `doubts_about`. Samples are known by the identity of their array, which must not be written to."""
        ordered = sorted(pool, key=lambda one: (one.arrived_at, one.adapter_name))
        known = [self._known.get(id(one.samples_ME)) or _Known.of(one.samples_ME) for one in ordered]
        self._known = {id(one.samples_ME): one for one in known}
        if len(pool) < 2:
            return {}
        names = [one.adapter_name for one in ordered]
        doubts = _of_many(names, known)
        doubts.update(_copies(names, known))
        return doubts


def doubts_about(pool: Sequence[DescribedAdapter]) -> dict[str, Doubt]:
    """The doubted adapters of a pool, by name; the order of the pool does not matter."""
    return SampleReview().doubts_about(pool)


def _copies(names: Sequence[str], known: Sequence[_Known]) -> dict[str, Doubt]:
    owners: dict[int, list[int]] = defaultdict(list)
    doubts: dict[str, Doubt] = {}
    for place, (name, one) in enumerate(zip(names, known, strict=True)):
        shared = Counter(owner for key in one.keys for owner in owners.get(key, ()))
        for key in one.keys:
            owners[key].append(place)
        if not shared:
            continue
        original, count = min(shared.items(), key=lambda item: (-item[1], item[0]))
        if count >= COPIED_SHARE * len(one.keys):
            doubts[name] = Doubt(
                kind=DoubtKind.COPIED_SAMPLES,
                message=f"{count} of its {len(one.keys)} sample texts are those of "
                f"{names[original]}, which came earlier.",
            )
    return doubts


def _keys(samples_ME: NDArray[np.float32]) -> tuple[int, ...]:
    rounded = np.round(samples_ME[:, :_KEY_NUMBERS].astype(np.float64) * _KEY_STEPS).astype(np.int16)
    return tuple(dict.fromkeys(hash(row.tobytes()) for row in rounded))


def _of_many(names: Sequence[str], known: Sequence[_Known]) -> dict[str, Doubt]:
    scatters_L = np.array([one.scatter for one in known])
    many_L = np.array([len(one.samples_ME) > 1 for one in known])
    if not many_L.any():
        return {}
    wide = np.flatnonzero(many_L & (scatters_L > WIDE * float(np.median(scatters_L[many_L]))))
    if not len(wide):
        return {}
    means_LE = np.stack([one.mean_E for one in known])
    doubts: dict[str, Doubt] = {}
    for place in wide.tolist():
        samples_ME = known[place].samples_ME
        takers = _takers(samples_ME.astype(np.float64), means_LE, place)
        num_samples = len(samples_ME)
        num_own = num_samples - sum(takers.values())
        if num_own <= OWN_SHARE * num_samples and len(takers) >= max(MIN_TAKERS, TAKER_SHARE * num_samples):
            doubts[names[place]] = Doubt(
                kind=DoubtKind.SAMPLES_OF_MANY,
                message=f"{num_samples - num_own} of its {num_samples} sample texts are nearer to the tasks of "
                f"{len(takers)} other adapters than to its own.",
            )
    return doubts


def _takers(samples_ME: FloatArray, means_LE: FloatArray, place: int) -> Counter[int]:
    """How many samples lie nearer to which other adapter's mean than to the own one, taken without the sample."""
    num_samples = len(samples_ME)
    squares_ML = (means_LE**2).sum(axis=1) - 2.0 * samples_ME @ means_LE.T
    without_ME = (means_LE[place] * num_samples - samples_ME) / (num_samples - 1)
    squares_ML[:, place] = (without_ME**2).sum(axis=1) - 2.0 * (samples_ME * without_ME).sum(axis=1)
    nearest_M = squares_ML.argmin(axis=1)
    return Counter(int(other) for other in nearest_M if other != place)
