"""Search among a pool's Gaussians: the adapters of highest score, and the sum that turns scores into probabilities.

Every adapter's score is an inner product of the text's coordinates with the adapter's slope, plus a constant, plus a
term that all adapters of equal sample count share. An index may use that to look at few adapters, or at numbers of
fewer bits; the scores it returns are float64 whatever it did to find them.

Shapes: L adapters, C found ones, K coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.candidate_selection import descending
from hilora.covariance import FloatArray
from hilora.pooled_gaussian import WhitenedGaussians

NOBODY: NDArray[np.intp] = np.zeros(0, dtype=np.intp)
"""Excludes no adapter."""
_NEGLIGIBLE = 50.0
"""What is smaller than the largest by so many nats is lost in its rounding, even a million times."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """What was found for a text: its best adapters by falling score, among equals the lower place first."""

    idx_C: NDArray[np.intp]
    """Places in the pool."""
    log_density_C: FloatArray
    """Scores in whitened units, as `WhitenedGaussians.log_density` gives them."""
    log_partition: float
    """`ln sum_i exp(score_i / T)` over all adapters that were allowed; minus infinity without any."""


class GaussianIndex(Protocol):
    """A searchable pool. Immutable and safe to share between threads."""

    @property
    def num_adapters(self) -> int:
        """L."""
        ...

    @property
    def kind(self) -> str:
        """How it searches, for logs and metrics."""
        ...

    @property
    def recall(self) -> float:
        """Share of the nearest adapters that a search finds, as measured when the index was built; 1 where exact."""
        ...

    def search(
        self, y_K: FloatArray, rest: float, *, num_results: int, temperature: float, excluded: NDArray[np.intp] = NOBODY
    ) -> Neighbours:
        """The best adapters for a located text.

        Args:
            y_K: the text's coordinates (`WhitenedSpace.locate`).
            rest: the squared length of its remainder.
            num_results: how many; all that are allowed, where these are fewer.
            temperature: `T` of the posterior.
            excluded: places of adapters that must not be found, each once.
        """
        ...


IndexBuilder = Callable[[WhitenedGaussians], GaussianIndex]
"""Makes an index of fitted Gaussians; called once per fit, in a thread."""


class DenseGaussianIndex:
    """Scores every adapter in float64: exact, and the measure of every other index.

    Args:
        gaussians: the pool.
    """

    def __init__(self, gaussians: WhitenedGaussians) -> None:
        self._gaussians = gaussians

    @property
    def num_adapters(self) -> int:
        """See `GaussianIndex.num_adapters`."""
        return self._gaussians.num_adapters

    @property
    def kind(self) -> str:
        """See `GaussianIndex.kind`."""
        return "dense"

    @property
    def recall(self) -> float:
        """See `GaussianIndex.recall`."""
        return 1.0

    def search(
        self, y_K: FloatArray, rest: float, *, num_results: int, temperature: float, excluded: NDArray[np.intp] = NOBODY
    ) -> Neighbours:
        """See `GaussianIndex.search`."""
        scores_L = self._gaussians.log_density(y_K, np.asarray(rest, dtype=np.float64))
        scores_L[excluded] = -np.inf
        num_results = min(num_results, len(scores_L) - len(excluded))
        idx_C = highest(scores_L, num_results)
        return Neighbours(idx_C=idx_C, log_density_C=scores_L[idx_C], log_partition=log_sum_exp(scores_L / temperature))


class ExtendedGaussianIndex:
    """An index with some adapters more, which take the places after its own.

    Args:
        base: the pool that was indexed.
        newcomers: the adapters that came later, in the same space; few, for every search scores them all.
    """

    def __init__(self, base: GaussianIndex, newcomers: WhitenedGaussians) -> None:
        self._base = base
        self._newcomers = DenseGaussianIndex(newcomers)

    @property
    def num_adapters(self) -> int:
        """See `GaussianIndex.num_adapters`."""
        return self._base.num_adapters + self._newcomers.num_adapters

    @property
    def kind(self) -> str:
        """See `GaussianIndex.kind`."""
        return self._base.kind

    @property
    def recall(self) -> float:
        """See `GaussianIndex.recall`."""
        return self._base.recall

    def search(
        self, y_K: FloatArray, rest: float, *, num_results: int, temperature: float, excluded: NDArray[np.intp] = NOBODY
    ) -> Neighbours:
        """See `GaussianIndex.search`."""
        num_base = self._base.num_adapters
        is_base = excluded < num_base
        first, second = (
            index.search(y_K, rest, num_results=num_results, temperature=temperature, excluded=left_out)
            for index, left_out in (
                (self._base, excluded[is_base]),
                (self._newcomers, excluded[~is_base] - num_base),
            )
        )
        idx_C = np.concatenate([first.idx_C, second.idx_C + num_base])
        log_density_C = np.concatenate([first.log_density_C, second.log_density_C])
        order = descending(log_density_C)[:num_results]
        return Neighbours(
            idx_C=idx_C[order],
            log_density_C=log_density_C[order],
            log_partition=float(np.logaddexp(first.log_partition, second.log_partition)),
        )


def highest(values_L: NDArray[np.floating], num_results: int) -> NDArray[np.intp]:
    """Places of the highest values by falling value, equal ones in their order; without sorting the others."""
    if num_results <= 0:
        return NOBODY
    if num_results >= len(values_L):
        return np.argsort(-values_L, kind="stable")
    # Everything that ties with the last place takes part, so that the lower place wins there, too.
    threshold = np.partition(values_L, len(values_L) - num_results)[len(values_L) - num_results]
    idx_C = np.flatnonzero(values_L >= threshold)
    return idx_C[np.argsort(-values_L[idx_C], kind="stable")][:num_results]


def log_sum_exp(values: FloatArray) -> float:
    """`ln sum exp`; minus infinity for nothing."""
    most = float(values.max(initial=-np.inf))
    if not np.isfinite(most):
        return -np.inf
    # Most adapters of a pool are that unlikely, and exponentials are dear.
    counted = values[values > most - _NEGLIGIBLE]
    return most + float(np.log(np.exp(counted - most).sum()))


def log_sum_exp_of_many(scores_L: FloatArray, *, temperature: float) -> float:
    """`ln sum exp(score / T)` with exponentials of single precision: seven digits, in a fraction of the time.

    Not every processor has instructions for exponentials of float64, and a large pool's sum is made of very many.
    """
    most = float(scores_L.max(initial=-np.inf))
    if not np.isfinite(most):
        return -np.inf
    exponents_L = (scores_L - most).astype(np.float32)
    exponents_L /= np.float32(temperature)
    # Numbers too small for single precision's ordinary form are slow to make, and add nothing.
    np.maximum(exponents_L, -_NEGLIGIBLE, out=exponents_L)
    return most / temperature + float(np.log(np.exp(exponents_L).sum(dtype=np.float64)))
