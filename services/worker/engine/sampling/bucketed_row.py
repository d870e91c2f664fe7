"""Drawing from the likeliest part of a row of which more would be kept than is worth sorting.

Shapes: V vocabulary, B buckets, M members of a bucket.

A nucleus may hold half of a vocabulary. Its tokens are never sorted: they fall into buckets by score, likeliest first,
the masses of the buckets tell where the nucleus ends and where a random number points, and only those two buckets are
put in order. What comes out is what sorting the whole row would give.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.worker.engine.sampling.sampling_params import SamplingParams

_BUCKETS_PER_NAT = 64.0
_NUM_BUCKETS = 4096
"""The last one holds everything that is exp(64) times less likely than the first token."""


class BucketedRow:
    """One row's tokens by likelihood.

    Args:
        scores_V: logits relative to the largest one, divided by the temperature.
    """

    def __init__(self, scores_V: NDArray[np.float32]) -> None:
        self._scores_V = scores_V
        self._bucket_V = np.minimum(scores_V * -_BUCKETS_PER_NAT, _NUM_BUCKETS - 1).astype(np.int32)
        masses_B = np.bincount(self._bucket_V, weights=np.exp(scores_V), minlength=_NUM_BUCKETS)
        self._cumulative_B = masses_B.cumsum()

    def draw(self, params: SamplingParams, random: float) -> int:
        """The token that a number in [0, 1) points at, after `min_p`, `top_k` and `top_p`."""
        end = self._nucleus_end(self._tail_end(params), params.top_p)
        bucket, place = self._at(random * self._mass(end))
        # Rounding must not lead beyond the end.
        bucket, place = min((bucket, place), (end[0], end[1] - 1))
        return int(self._members(bucket)[place])

    def _tail_end(self, params: SamplingParams) -> tuple[int, int]:
        """Where `min_p` and `top_k` end the row: a bucket, and how many of its members are kept, one at least."""
        ends = [(_NUM_BUCKETS, 0)]
        if params.min_p > 0:
            least = np.log(params.min_p)
            bucket = int(min(-least * _BUCKETS_PER_NAT, _NUM_BUCKETS - 1))
            ends.append((bucket, int((self._scores_V[self._bucket_V == bucket] >= least).sum())))
        if params.top_k > 0:
            cumulative_B = np.bincount(self._bucket_V, minlength=_NUM_BUCKETS).cumsum()
            bucket = int(np.searchsorted(cumulative_B, params.top_k))
            if bucket < _NUM_BUCKETS:
                ends.append((bucket, params.top_k - int(cumulative_B[bucket - 1] if bucket else 0)))
        return self._with_a_member(min(ends))

    def _nucleus_end(self, end: tuple[int, int], top_p: float) -> tuple[int, int]:
        if top_p >= 1:
            return end
        mass = top_p * self._mass(end)
        bucket = int(np.searchsorted(self._cumulative_B, mass))
        place = int(np.searchsorted(self._member_masses(bucket), mass - self._mass_before(bucket)))
        return self._with_a_member(min(end, (bucket, place + 1)))

    def _at(self, mass: float) -> tuple[int, int]:
        """The bucket and the place in it where so much mass lies before."""
        last = int(np.searchsorted(self._cumulative_B, self._cumulative_B[-1]))
        bucket = min(int(np.searchsorted(self._cumulative_B, mass, side="right")), last)
        masses_M = self._member_masses(bucket)
        last = int(np.searchsorted(masses_M, masses_M[-1]))
        return bucket, min(int(np.searchsorted(masses_M, mass - self._mass_before(bucket), side="right")), last)

    def _with_a_member(self, end: tuple[int, int]) -> tuple[int, int]:
        bucket, num_members = end
        if num_members == 0:
            bucket = int(self._bucket_V[self._bucket_V < bucket].max())
            num_members = int((self._bucket_V == bucket).sum())
        return bucket, num_members

    def _mass(self, end: tuple[int, int]) -> float:
        bucket, num_members = end
        return self._mass_before(bucket) + float(self._member_masses(bucket)[num_members - 1])

    def _mass_before(self, bucket: int) -> float:
        return float(self._cumulative_B[bucket - 1]) if bucket else 0.0

    def _member_masses(self, bucket: int) -> NDArray[np.float64]:
        return np.exp(self._scores_V[self._members(bucket)]).cumsum(dtype=np.float64)

    def _members(self, bucket: int) -> NDArray[np.int64]:
        """Token ids of a bucket, likeliest first, of equals the lower id first."""
        token_ids_M = np.flatnonzero(self._bucket_V == bucket)
        return token_ids_M[np.argsort(-self._scores_V[token_ids_M], kind="stable")]
