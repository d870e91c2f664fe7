"""Every sample text of a pool as a point, with the adapter it belongs to: what retrieval over samples searches.

Shapes: N samples of all adapters, E embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class SampleVectors:
    """A second copy of a pool's samples, side by side: 300 MB at 10,000 adapters with 20 samples of 384 dimensions."""

    vectors_NE: NDArray[np.float32]
    """Unit vectors."""
    owner_N: NDArray[np.intp]
    """Place of the adapter that each sample belongs to."""
    rank_of_owner_N: NDArray[np.intp]
    """Place of that adapter among all, sorted by identity: what decides between equals."""

    @classmethod
    def of(cls, blocks: Sequence[NDArray[np.float32]], *, adapter_ids: Sequence[str]) -> SampleVectors:
        """Put blocks `[m_i, E]` side by side; one block and one identity an adapter, by place."""
        vectors_NE = np.concatenate(blocks).astype(np.float32)
        norms_N = np.linalg.norm(vectors_NE, axis=1, keepdims=True).astype(np.float32)
        rank_L = np.argsort(np.argsort(np.array(adapter_ids), kind="stable"), kind="stable")
        owner_N = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
        return cls(
            vectors_NE=(vectors_NE / np.where(norms_N > 0.0, norms_N, 1.0)).astype(np.float32),
            owner_N=owner_N,
            rank_of_owner_N=rank_L[owner_N],
        )
