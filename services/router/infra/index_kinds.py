"""The index of each kind."""

from __future__ import annotations

import faiss

from hilora.gaussian_index import DenseGaussianIndex, GaussianIndex
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.exact_index import ExactIndex
from services.router.infra.faiss_index import ByteFaissIndex, CellFaissIndex
from services.router.pool_index import IndexKind


def build_index(gaussians: WhitenedGaussians, kind: IndexKind) -> GaussianIndex:
    """Make an index of a pool.

    Args:
        gaussians: the pool, with at least one coordinate.
        kind: how it is to be searched.
    """
    # Of this thread: building must leave the other processors to the requests.
    faiss.omp_set_num_threads(1)
    return _CLASSES[kind](gaussians)


_CLASSES = {
    IndexKind.DENSE: DenseGaussianIndex,
    IndexKind.EXACT: ExactIndex,
    IndexKind.BYTE: ByteFaissIndex,
    IndexKind.IVF: CellFaissIndex,
}
