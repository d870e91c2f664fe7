"""How long jobs took from their acceptance to their end, as counts that several processes can add to."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

DURATION_BOUNDS_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds of the counts: from a small upload to a large download with self-portraits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDurations:
    """Jobs that ended, by how long they took."""

    counts: Mapping[int, int] = field(default_factory=dict[int, int])
    """Number of jobs by `bucket_of` of their duration; buckets without a job may be missing."""
    total_seconds: float = 0.0
    """Of all of them together."""

    def cumulative(self) -> list[tuple[float, int]]:
        """Each upper bound, infinity last, with the number of jobs that took no longer."""
        found: list[tuple[float, int]] = []
        so_far = 0
        for idx, bound in enumerate((*DURATION_BOUNDS_SECONDS, float("inf"))):
            so_far += self.counts.get(idx, 0)
            found.append((bound, so_far))
        return found


def bucket_of(seconds: float) -> int:
    """Index of the first bound that is not below a duration; the number of bounds for one above them all."""
    return bisect.bisect_left(DURATION_BOUNDS_SECONDS, seconds)
