"""Which rows of an arena are free."""

from __future__ import annotations

import numpy as np


class RowAllocator:
    """Hands out single rows, 1 upwards; row 0 is never given away. Not thread-safe: its owner holds the lock.

    What was freed last is handed out first, so that a new adapter usually takes the very rows of the one that made
    room for it, and rows above the highest ever used stay untouched.
    """

    def __init__(self) -> None:
        self._free = np.empty(64, dtype=np.int64)
        self._num_free = 0
        self._next_row = 1

    @property
    def height(self) -> int:
        """Rows from 0 to the highest that was ever handed out."""
        return self._next_row

    @property
    def num_used(self) -> int:
        """Rows that are handed out now."""
        return self._next_row - 1 - self._num_free

    @property
    def free_rows(self) -> np.ndarray:
        """Rows below `height` that nobody has, ascending."""
        return np.sort(self._free[: self._num_free])

    def height_with(self, num_rows: int) -> int:
        """The height after so many more rows are handed out."""
        return self._next_row + max(0, num_rows - self._num_free)

    def take(self, num_rows: int) -> np.ndarray:
        """Distinct free rows, int64, in runs where possible."""
        num_reused = min(num_rows, self._num_free)
        reused = self._free[self._num_free - num_reused : self._num_free].copy()
        self._num_free -= num_reused
        fresh = np.arange(self._next_row, self._next_row + num_rows - num_reused, dtype=np.int64)
        self._next_row += num_rows - num_reused
        return np.concatenate([reused, fresh])

    def give_back(self, rows: np.ndarray) -> None:
        """Free rows that were handed out."""
        stop = self._num_free + len(rows)
        if stop > len(self._free):
            self._free = np.concatenate([self._free, np.empty(stop, dtype=np.int64)])
        self._free[self._num_free : stop] = rows
        self._num_free = stop

    def compact(self) -> np.ndarray:
        """Move all used rows to the bottom, in their order.

        Returns:
            The new row of each old one, int64 `[height before]`; 0 for rows that were free.
        """
        is_used = np.ones(self._next_row, dtype=bool)
        is_used[0] = False
        is_used[self._free[: self._num_free]] = False
        self._num_free = 0
        self._next_row = int(is_used.sum()) + 1
        return np.where(is_used, np.cumsum(is_used), 0)

    def check_integrity(self, used_rows: np.ndarray) -> None:
        """AssertionError unless every row below `height` is free, or among the used ones, exactly once."""
        rows = np.sort(np.concatenate([self._free[: self._num_free], used_rows]))
        assert np.array_equal(rows, np.arange(1, self._next_row)), "a row is lost or held twice"
