"""Whether two adapters do the same: their updates compared without forming a weight.

With `delta_W = sum_j b_j a_j^T` the inner product of two updates is a sum over pairs of components,

    <delta_W, delta_W'> = sum_jk (b_j . b'_k) (a_j . a'_k)

at the cost of two `R x R'` products. The cosine it gives compares what the updates do; the alignments compare where
they read from and write to: the mean squared cosine of the principal angles between the spaces spanned by the `a`, and
by the `b`.

Shapes: D in-features, O out-features, R components of a module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis

_LEAST_SHARE = 1e-6
"""Components with less of the largest one's energy span nothing: their directions are rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleOverlap:
    """Two updates of one module."""

    cosine: float
    """Of the updates as vectors: 1 the same up to a factor, 0 unrelated, negative opposed."""
    input_alignment: float
    """Of the spaces they read, within [0, 1]; 1 where one contains the other."""
    output_alignment: float
    """Of the spaces they write."""


@dataclass(frozen=True, kw_only=True)
class UpdateOverlap:
    """Two adapters."""

    cosine: float
    """Of the whole updates; modules that one of them lacks count as unrelated."""
    norm_ratio: float
    """The smaller Frobenius norm over the larger one; 0 if one changes nothing."""
    modules: Mapping[str, ModuleOverlap]
    """Of the modules that both change."""


def update_overlap(first: DecomposedAdapter, second: DecomposedAdapter) -> UpdateOverlap:
    """Compare two adapters of one base in the SVD basis.

    Raises:
        ValueError: another basis, in which the components do not show the spaces of the update.
    """
    if first.basis is not RocBasis.SVD or second.basis is not RocBasis.SVD:
        raise ValueError("both adapters must be in the svd basis")
    modules: dict[str, ModuleOverlap] = {}
    inner = 0.0
    for path in sorted(first.modules.keys() & second.modules.keys()):
        ours, theirs = first.modules[path], second.modules[path]
        product = _inner_product(ours, theirs)
        inner += product
        modules[path] = ModuleOverlap(
            cosine=_ratio(product, math.sqrt(_energy(ours) * _energy(theirs))),
            input_alignment=_alignment(_spanning(ours, ours.a_RD), _spanning(theirs, theirs.a_RD)),
            output_alignment=_alignment(_spanning(ours, ours.b_RO), _spanning(theirs, theirs.b_RO)),
        )
    norms = [math.sqrt(sum(_energy(rocs) for rocs in adapter.modules.values())) for adapter in (first, second)]
    return UpdateOverlap(
        cosine=_ratio(inner, norms[0] * norms[1]), norm_ratio=_ratio(min(norms), max(norms)), modules=modules
    )


def _inner_product(first: RankOneComponents, second: RankOneComponents) -> float:
    along_a = first.a_RD.double() @ second.a_RD.double().T
    along_b = first.b_RO.double() @ second.b_RO.double().T
    return float((along_a * along_b).sum())


def _energy(rocs: RankOneComponents) -> float:
    return _inner_product(rocs, rocs)


def _spanning(rocs: RankOneComponents, rows: torch.Tensor) -> torch.Tensor:
    """Unit vectors of the components that carry energy; in the SVD basis they are orthogonal."""
    energies = torch.linalg.vector_norm(rocs.a_RD.double(), dim=1)
    kept = rows.double()[energies > _LEAST_SHARE * energies.max()] if len(energies) else rows.double()
    return torch.nn.functional.normalize(kept, dim=1)


def _alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    if not len(first) or not len(second):
        return 0.0
    return min(1.0, float(((first @ second.T) ** 2).sum()) / min(len(first), len(second)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0
