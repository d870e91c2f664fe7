"""The index of each kind."""

from __future__ import annotations

import faiss

from hilora.gaussian_index import DenseGaussianIndex, GaussianIndex
from hilora.pooled_gaussian import WhitenedGaussians
from services.router.infra.byte_scores import ByteScores, is_byte_kernel_compiled
from services.router.infra.cell_index import CellIndex
from services.router.infra.single_scores import SingleScores
from services.router.infra.whole_index import WholeIndex
from services.router.pool_index import IndexKind


def build_index(gaussians: WhitenedGaussians, kind: IndexKind) -> GaussianIndex:
    """Make an index of a pool. Without a compiled kernel, `EXACT` stands in for `BYTE`.

    Args:
        gaussians: the pool, with at least one coordinate.
        kind: how it is to be searched.
    """
    # Of this thread: building must leave the other processors to the requests.
    faiss.omp_set_num_threads(1)
    match kind:
        case IndexKind.DENSE:
            return DenseGaussianIndex(gaussians)
        case IndexKind.BYTE if is_byte_kernel_compiled():
            return WholeIndex(gaussians, kind=kind, scores=ByteScores(gaussians))
        case IndexKind.EXACT | IndexKind.BYTE:
            return WholeIndex(gaussians, kind=IndexKind.EXACT, scores=SingleScores(gaussians))
        case IndexKind.IVF:
            return CellIndex(gaussians)
