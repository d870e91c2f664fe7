"""How a pool of adapters is searched, by its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hilora.gaussian_index import DenseGaussianIndex, GaussianIndex
from hilora.pooled_gaussian import WhitenedGaussians

KindBuilder = Callable[[WhitenedGaussians, "IndexKind"], GaussianIndex]
"""Makes an index of one kind other than `DENSE`."""


class IndexKind(StrEnum):
    """Ways to search a pool."""

    DENSE = "dense"
    """Score everything in float64."""
    EXACT = "exact"
    """Look at everything in float32, score the best in float64."""
    BYTE = "byte"
    """Look at everything in bytes, score the best in float64; the posterior's sum is of rounded scores."""
    IVF = "ivf"
    """Look at the nearest cells of the pool only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRules:
    """Which way is taken when."""

    dense_up_to: int = 2_000
    """Adapters up to which nothing is won by an index."""
    exact_up_to: int = 50_000
    """Adapters up to which every score enters the posterior as it is; beyond, the unlikely ones enter it rounded."""
    whole_up_to: int = 200_000
    """Adapters up to which everything is looked at; beyond, a part."""
    min_recall: float = 0.99
    """What a look at a part must find of the ten nearest adapters to be used."""


def build_pool_index(gaussians: WhitenedGaussians, *, rules: IndexRules, build: KindBuilder) -> GaussianIndex:
    """The index for a pool of this size. A part of it is looked at only where that was measured to find enough.

    Args:
        gaussians: the fitted pool.
        rules: the limits.
        build: makes the index of a kind.
    """
    if gaussians.num_adapters <= rules.dense_up_to or not gaussians.means_LK.shape[1]:
        return DenseGaussianIndex(gaussians)
    if gaussians.num_adapters <= rules.exact_up_to:
        return build(gaussians, IndexKind.EXACT)
    if gaussians.num_adapters > rules.whole_up_to:
        fast = build(gaussians, IndexKind.IVF)
        if fast.recall >= rules.min_recall:
            return fast
    return build(gaussians, IndexKind.BYTE)
