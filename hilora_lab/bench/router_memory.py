"""Whether a process grows with what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def describe_growth(held: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What a process held and what each request added to it.

    Args:
        held: `(requests so far, resident bytes)`, at least two, in order.

    Returns:
        `bytes_per_request` is the slope of a line through the second half: what libraries and caches set up with the
        first requests is no growth.
    """
    counts, sizes = np.array(held, dtype=np.float64).T
    half = min(len(held) // 2, len(held) - 2)
    slope = np.polyfit(counts[half:], sizes[half:], 1)[0]
    return {
        "num_requests": int(counts[-1]),
        "first_bytes": int(sizes[0]),
        "last_bytes": int(sizes[-1]),
        "most_bytes": int(sizes.max()),
        "bytes_per_request": round(float(slope), 1),
    }
