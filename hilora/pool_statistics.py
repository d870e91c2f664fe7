"""What a fit needs of a whole pool, summed up batch by batch: the samples themselves are never copied as a whole.

A pool of 10,000 adapters has 200,000 samples. Their mean per adapter and the sums of their residuals are enough for
every estimate, take one pass, and add up: leaving some samples out touches only the adapters they belong to.

Shapes: L adapters, E embedding dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray, ResidualSums, StackedSamples

_BATCH_ROWS = 1024
"""Samples taken into float64 at a time: large enough for the matrix product to pay, small enough that a request that
waits for the interpreter or for BLAS does not notice."""

SampleBlocks = Sequence[NDArray[np.floating]]
"""One `[m_i, E]` array of embeddings per adapter."""


@dataclass(frozen=True, kw_only=True)
class PoolStatistics:
    """Means and residual sums of a pool, in the order of its adapters."""

    means_LE: FloatArray
    num_samples_L: NDArray[np.intp]
    residuals: ResidualSums

    @classmethod
    def of(cls, samples: SampleBlocks) -> PoolStatistics:
        """Sum up a pool.

        Raises:
            ValueError: no adapter, an adapter without a sample, unequal dimensions, or a value that is not finite.
        """
        if not samples:
            raise ValueError("a pool needs at least one adapter")
        means: list[FloatArray] = []
        counts: list[NDArray[np.intp]] = []
        residuals: ResidualSums | None = None
        for batch in batches(samples):
            if means and batch.means.shape[1] != means[0].shape[1]:
                raise ValueError("the adapters' samples have different dimensions: one encoder per pool")
            means.append(batch.means)
            counts.append(batch.num_samples_L)
            added = ResidualSums.of(batch)
            residuals = added if residuals is None else residuals + added
        assert residuals is not None, "a pool has a first batch"
        return cls(means_LE=np.concatenate(means), num_samples_L=np.concatenate(counts), residuals=residuals)


def batches(samples: SampleBlocks) -> Iterator[StackedSamples]:
    """The pool as stacks of about `_BATCH_ROWS` samples, adapter by adapter.

    Raises:
        ValueError: see `StackedSamples.of`.
    """
    start, num_rows = 0, 0
    for place, block in enumerate(samples):
        num_rows += len(block)
        if num_rows >= _BATCH_ROWS:
            yield StackedSamples.of(samples[start : place + 1])
            start, num_rows = place + 1, 0
    if start < len(samples):
        yield StackedSamples.of(samples[start:])
