"""Where an adapter's components are: one row number for each of them, and nothing for layers that it leaves alone.

A mixture of experts has thousands of layers, of which most adapters change a few; and adapters of one kind, with the
same ranks in the same layers, differ in nothing but their rows. So the ranks are kept once for each kind.

Shapes: M layers, N some of them, P an adapter's components, layer after layer, R its largest rank in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakValueDictionary

import numpy as np


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class RankLayout:
    """How many components the adapters of one kind have in each layer."""

    module_ranks: tuple[int, ...]
    """By module index; 0 where they have none."""
    firsts: np.ndarray
    """Place of each layer's first component, and P at the end, int32 `[M + 1]`."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self.firsts.nbytes + len(self.module_ranks) * np.dtype(np.intp).itemsize


class RankLayouts:
    """The layouts that some table has. Not thread-safe: its owner holds the lock."""

    def __init__(self) -> None:
        self._layouts: WeakValueDictionary[tuple[int, ...], RankLayout] = WeakValueDictionary()

    def of(self, module_ranks: tuple[int, ...]) -> RankLayout:
        """The layout of adapters with so many components in each layer."""
        layout = self._layouts.get(module_ranks)
        if layout is None:
            firsts = np.fromiter(accumulate(module_ranks, initial=0), dtype=np.int32, count=len(module_ranks) + 1)
            layout = self._layouts[module_ranks] = RankLayout(module_ranks, _read_only(firsts))
        return layout


@dataclass(frozen=True, slots=True, eq=False)
class RowTable:
    """One adapter's rows."""

    layout: RankLayout
    rows_P: np.ndarray
    """Row of each component in its layer's arena, int32, read-only."""

    @classmethod
    def made(cls, layout: RankLayout, rows_P: np.ndarray) -> RowTable:
        """A table of rows of any integer type."""
        return cls(layout, _read_only(rows_P.astype(np.int32)))

    @property
    def num_bytes(self) -> int:
        """Bytes of memory, without the layout."""
        return self.rows_P.nbytes

    def of_module(self, module_idx: int) -> np.ndarray:
        """The rows of one layer's components."""
        first, stop = self.layout.firsts[module_idx : module_idx + 2]
        return self.rows_P[first:stop]

    def of_modules(self, module_idxs: np.ndarray) -> np.ndarray:
        """The rows of some layers, int32 `[N, R]`: row 0 behind those of layers with fewer than R components."""
        firsts = self.layout.firsts[module_idxs]
        ranks = self.layout.firsts[module_idxs + 1] - firsts
        slots_R = np.arange(max(self.layout.module_ranks, default=0), dtype=np.int32)
        is_used_NR = slots_R < ranks[:, None]
        rows_NR = np.zeros(is_used_NR.shape, dtype=np.int32)
        rows_NR[is_used_NR] = self.rows_P[(firsts[:, None] + slots_R)[is_used_NR]]
        return rows_NR

    def by_component(self, values_M: np.ndarray) -> np.ndarray:
        """What each component's layer has of one value per layer, `[P]`."""
        return np.repeat(values_M, np.diff(self.layout.firsts))


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
