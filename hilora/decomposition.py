"""An adapter as rank-one components, and back.

Any `delta_W = c B A` is a sum of `R` rank-one terms, and the terms are not unique. The trained factors are one
choice; the singular vectors are another, in which the terms are orthogonal and ordered by energy, so that `|a . x|`
is exactly the length of what a term adds to the output.

Shapes: D in-features, O out-features, R components of a module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hilora.adapter import DecomposedAdapter, LoRAAdapter, LoRAFactors, RankOneComponents, RocBasis


@dataclass(frozen=True, kw_only=True, slots=True)
class SingularTriplets:
    """The update of a layer as `sum_j values_j u_j v_j^T`, in float64, largest values first."""

    u_RO: torch.Tensor
    """Orthonormal rows."""
    values_R: torch.Tensor
    """Singular values; no more than the layer is wide."""
    v_RD: torch.Tensor
    """Orthonormal rows."""


def singular_triplets(factors: LoRAFactors) -> SingularTriplets:
    """SVD of `c B A` without forming it: QR of both factors leaves an `R x R` core."""
    a_RD = factors.lora_a.to(torch.float64)
    b_OR = factors.lora_b.to(torch.float64) * factors.scaling
    q_a, r_a = torch.linalg.qr(a_RD.T)
    q_b, r_b = torch.linalg.qr(b_OR)
    u, values_R, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return SingularTriplets(u_RO=(q_b @ u).T, values_R=values_R, v_RD=vt @ q_a.T)


def decompose(adapter: LoRAAdapter, *, basis: RocBasis) -> DecomposedAdapter:
    """Write every module's update as rank-one components, with its scaling folded into `b`.

    The arithmetic is float64, the result float32 on the CPU. A module keeps as many rows as it had ranks, also where
    its update has a lower rank: the surplus rows then carry no energy.

    Args:
        adapter: the factors as read.
        basis: `TRAINED` keeps the factors; `SVD` makes the rows of `b` orthonormal and orders the components by
            falling energy, each with the largest entry of its `b` positive.
    """
    of_module = _trained_components if basis is RocBasis.TRAINED else _singular_components
    return DecomposedAdapter(
        basis=basis, modules={path: of_module(factors) for path, factors in adapter.modules.items()}
    )


def recompose(decomposed: DecomposedAdapter) -> LoRAAdapter:
    """The same update as plain factors of scaling 1, whatever the basis."""
    return LoRAAdapter(
        base_model=None,
        modules={
            path: LoRAFactors(lora_a=rocs.a_RD, lora_b=rocs.b_RO.T.contiguous(), scaling=1.0)
            for path, rocs in decomposed.modules.items()
        },
    )


def delta_weight(rocs: RankOneComponents) -> torch.Tensor:
    """The dense update `sum_j b_j a_j^T`, `[O, D]`. For tests and merges; serving never forms it."""
    return rocs.b_RO.T @ rocs.a_RD


def roc_energies(rocs: RankOneComponents) -> torch.Tensor:
    """The Frobenius norm `||a_j|| ||b_j||` of each component, `[R]` in float64, where no finite component overflows; in
    the SVD basis the singular values."""
    a_R, b_R = (torch.linalg.vector_norm(factor, dim=1, dtype=torch.float64) for factor in (rocs.a_RD, rocs.b_RO))
    return a_R * b_R


def _trained_components(factors: LoRAFactors) -> RankOneComponents:
    b_RO = (factors.lora_b.to(torch.float64) * factors.scaling).T
    return RankOneComponents(
        a_RD=factors.lora_a.to(torch.float32).contiguous(), b_RO=b_RO.to(torch.float32).contiguous()
    )


def _singular_components(factors: LoRAFactors) -> RankOneComponents:
    triplets = singular_triplets(factors)
    a_rows = triplets.values_R[:, None] * triplets.v_RD
    # A singular pair is defined up to its sign; fixing it makes equal updates equal bytes.
    largest = torch.gather(triplets.u_RO, 1, triplets.u_RO.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    num_missing = factors.lora_rank - triplets.u_RO.shape[0]
    return RankOneComponents(a_RD=_padded(a_rows * sign, num_missing), b_RO=_padded(triplets.u_RO * sign, num_missing))


def _padded(rows: torch.Tensor, num_missing: int) -> torch.Tensor:
    """Zero rows where the rank exceeds a layer's width: the singular basis has no more directions there."""
    return torch.nn.functional.pad(rows.to(torch.float32), (0, 0, 0, num_missing)).contiguous()
