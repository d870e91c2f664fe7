"""Which texts the temperature is fitted to, and the pool without them.

Held-out texts must be scored by a model that has never seen them: means, covariances and all. In a small pool a fifth
of every adapter's texts is left out at a time. In a large one that would repeat the whole fit to learn a single number,
so a random part of the adapters, the same at every fit, gives the texts; the others are summed up once. The texts still
compete with all adapters: the temperature grows with their number.

Shapes: L adapters, N held-out texts, E embedding dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray, ResidualSums, StackedSamples
from hilora.pool_statistics import PoolStatistics, SampleBlocks

NUM_FOLDS = 5
_MAX_ADAPTERS = 1024
"""Adapters whose texts are held out."""
_ROWS = (256, 2048)
"""Least and most held-out texts. More would change the temperature's third digit."""
_MAX_SCORES = 2048 * 4096
"""Texts times adapters: the most scores to be kept, unless that leaves too few texts."""
_SEED = 20_251_012


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Some texts, and the statistics of the pool without all the texts of their fold."""

    held_out_NE: FloatArray
    true_idx_N: NDArray[np.intp]
    """Whose text each row is, as a place in the pool."""
    ordinal_N: NDArray[np.intp]
    """Which of its adapter's texts each row is."""
    statistics: PoolStatistics
    number: int
    """Of the chosen adapters with several texts, those are left out whose ordinal is this modulo `NUM_FOLDS`."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSamples:
    """A pool in two parts: adapters whose texts may be held out, and the others, of which the sums are enough."""

    chosen_C: NDArray[np.intp]
    """Places of the adapters whose texts may be held out, rising."""
    chosen: StackedSamples
    """Their samples."""
    others: PoolStatistics | None
    """None where all are chosen."""
    max_rows: int
    """Texts that are enough."""

    @property
    def num_adapters(self) -> int:
        """L."""
        return len(self.chosen_C) + (0 if self.others is None else len(self.others.num_samples_L))

    @cached_property
    def _other_places(self) -> NDArray[np.intp]:
        return np.setdiff1d(np.arange(self.num_adapters), self.chosen_C, assume_unique=True)

    def whole_pool(self) -> PoolStatistics:
        """The statistics with every text."""
        return self._together(self.chosen)

    def folds(self) -> Iterator[Fold]:
        """Fold after fold; a pool of one adapter, or of single texts, has none."""
        if self.num_adapters == 1:
            return
        fold_N = self.chosen.ordinal % NUM_FOLDS
        may_leave_N = self.chosen.num_samples_L[self.chosen.adapter_idx] > 1
        for fold in range(NUM_FOLDS):
            held_out_N = (fold_N == fold) & may_leave_N
            rows = np.flatnonzero(held_out_N)
            if not len(rows):
                continue
            rows = rows[:: -(-len(rows) // self.max_rows)]
            yield Fold(
                held_out_NE=self.chosen.samples_NE[rows],
                true_idx_N=self.chosen_C[self.chosen.adapter_idx[rows]],
                ordinal_N=self.chosen.ordinal[rows],
                number=fold,
                statistics=self._together(self.chosen.keeping(~held_out_N)),
            )

    def _together(self, chosen: StackedSamples) -> PoolStatistics:
        """The statistics of both parts, in the order of the pool."""
        residuals = ResidualSums.of(chosen)
        if self.others is None:
            return PoolStatistics(means_LE=chosen.means, num_samples_L=chosen.num_samples_L, residuals=residuals)
        means_LE = np.empty((self.num_adapters, chosen.means.shape[1]))
        num_samples_L = np.empty(self.num_adapters, dtype=np.intp)
        for places, means, counts in (
            (self.chosen_C, chosen.means, chosen.num_samples_L),
            (self._other_places, self.others.means_LE, self.others.num_samples_L),
        ):
            means_LE[places] = means
            num_samples_L[places] = counts
        return PoolStatistics(
            means_LE=means_LE, num_samples_L=num_samples_L, residuals=self.others.residuals + residuals
        )


def choose_calibration(samples: SampleBlocks) -> CalibrationSamples:
    """Divide a pool. Up to `_MAX_ADAPTERS` all are chosen; beyond, as many at random, by a fixed seed.

    Raises:
        ValueError: see `PoolStatistics.of`.
    """
    num_adapters = len(samples)
    max_rows = int(np.clip(_MAX_SCORES // max(num_adapters, 1), *_ROWS))
    if num_adapters <= _MAX_ADAPTERS:
        return CalibrationSamples(
            chosen_C=np.arange(num_adapters), chosen=StackedSamples.of(samples), others=None, max_rows=max_rows
        )
    rng = np.random.default_rng(_SEED)
    chosen_C = np.sort(rng.choice(num_adapters, size=_MAX_ADAPTERS, replace=False))
    others_O = np.setdiff1d(np.arange(num_adapters), chosen_C, assume_unique=True)
    chosen = StackedSamples.of([samples[place] for place in chosen_C])
    others = PoolStatistics.of([samples[place] for place in others_O])
    if others.means_LE.shape[1] != chosen.means.shape[1]:
        raise ValueError("the adapters' samples have different dimensions: one encoder per pool")
    return CalibrationSamples(chosen_C=chosen_C, chosen=chosen, others=others, max_rows=max_rows)
