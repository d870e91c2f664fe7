"""LoRA-Squeeze (arXiv 2602.10993): an adapter of lower rank, the closest there is.

    c B A = U S V^T  by QR of B and A^T and the SVD of the R x R core
    B' = U_r S_r^1/2,  A' = S_r^1/2 V_r^T  of the r largest singular values

Truncation is the best approximation of its rank in the Frobenius norm (Eckart and Young), and its error is the energy
of the tail, `sqrt(sum_{j > r} s_j^2)`. Ranks may be given, or follow per module from the share of the energy
`sum s_j^2` that is to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.decomposition import singular_triplets
from hilora.errors import InvalidInput

_REMEDY = 'Give one of both: {"rank": n} with n >= 1, or {"energy": x} with 0 < x <= 1.'


@dataclass(frozen=True, kw_only=True, slots=True)
class Squeeze:
    """How far an adapter is to be compressed: exactly one of the two is given."""

    rank: int | None = None
    """Largest rank of a module; one that has no more is left as it is."""
    energy: float | None = None
    """Share of each module's energy that is kept, above 0 and at most 1; its rank is the smallest that does so."""

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise _invalid("A compression needs a rank or a share of the energy.")
        if self.rank is not None and (isinstance(self.rank, bool) or self.rank < 1):
            raise _invalid(f"{self.rank} is no rank to compress an adapter to.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise _invalid(f"{self.energy} is no share of an adapter's energy.")


@dataclass(frozen=True, kw_only=True)
class SqueezedAdapter:
    """An adapter of lower rank, and what that cost."""

    adapter: LoRAAdapter
    energy_kept: Mapping[str, float]
    """By module path: share of the energy that is left, 1 where nothing was cut off."""
    total_energy_kept: float
    """The share over all modules together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy_kept", MappingProxyType(dict(self.energy_kept)))


def squeeze(adapter: LoRAAdapter, how: Squeeze) -> SqueezedAdapter:
    """Truncate every module's update.

    Args:
        adapter: as read, with finite values.
        how: the target; a module whose rank is not above it keeps its factors, bit for bit.

    Returns:
        Factors in float32 of scaling 1 where something was cut off; each singular value is shared by both.
    """
    modules: dict[str, LoRAFactors] = {}
    kept: dict[str, float] = {}
    total = left = 0.0
    for path, factors in adapter.modules.items():
        triplets = singular_triplets(factors)
        energies_R = triplets.values_R.square()
        rank = _rank_for(energies_R, how)
        energy, energy_left = float(energies_R.sum()), float(energies_R[:rank].sum())
        total, left = total + energy, left + energy_left
        kept[path] = energy_left / energy if energy else 1.0
        if rank >= factors.lora_rank:
            modules[path] = factors
            continue
        roots = triplets.values_R[:rank].sqrt()[:, None]
        modules[path] = LoRAFactors(
            lora_a=(roots * triplets.v_RD[:rank]).to(torch.float32).contiguous(),
            lora_b=(roots * triplets.u_RO[:rank]).T.to(torch.float32).contiguous(),
            scaling=1.0,
        )
    return SqueezedAdapter(
        adapter=LoRAAdapter(base_model=adapter.base_model, modules=modules),
        energy_kept=kept,
        total_energy_kept=left / total if total else 1.0,
    )


def _rank_for(energies_R: torch.Tensor, how: Squeeze) -> int:
    if how.rank is not None:
        return how.rank
    assert how.energy is not None, "a Squeeze has one of both"
    wanted = how.energy * float(energies_R.sum())
    # At least one component: a module of rank 0 cannot be stored. Rounding must not add a rank at energy 1.
    enough = energies_R.cumsum(dim=0) >= wanted * (1.0 - 1e-12)
    return max(1, int((~enough).sum()) + 1) if bool(enough.any()) else len(energies_R)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_squeeze", remedy=_REMEDY, place="squeeze")
