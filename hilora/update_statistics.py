"""How large an adapter's update is, and over how many directions it spreads: read off its SVD basis.

There the energies of the components are the singular values `s_1 >= s_2 >= ...` of `delta_W`, so that

    |delta_W|_F^2 = sum s_j^2      |delta_W|_2 = s_1      stable rank = |delta_W|_F^2 / |delta_W|_2^2

The stable rank lies between 1 and the rank: 1 says that one component does all the work. All modules together are
taken as one block-diagonal update.

Shapes: R components of a module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.decomposition import roc_energies

_SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class ModuleStatistics:
    """The update of one module."""

    singular_values: tuple[float, ...]
    """`s_1 >= s_2 >= ...`, one per component, six significant digits."""

    @property
    def spectral_norm(self) -> float:
        """`|delta_W|_2`: the most that a unit input can be changed by."""
        return self.singular_values[0] if self.singular_values else 0.0

    @property
    def frobenius_norm(self) -> float:
        """`|delta_W|_F`."""
        return math.sqrt(math.fsum(value**2 for value in self.singular_values))

    @property
    def stable_rank(self) -> float:
        """Within [1, R]; 0 for a module without an update."""
        return _stable_rank(self.frobenius_norm, self.spectral_norm)


@dataclass(frozen=True, kw_only=True)
class UpdateStatistics:
    """The update of a whole adapter."""

    modules: Mapping[str, ModuleStatistics]
    """By module path."""

    @cached_property
    def spectral_norm(self) -> float:
        """The largest of any module."""
        return max((module.spectral_norm for module in self.modules.values()), default=0.0)

    @cached_property
    def frobenius_norm(self) -> float:
        """Over all modules."""
        return math.sqrt(math.fsum(module.frobenius_norm**2 for module in self.modules.values()))

    @property
    def stable_rank(self) -> float:
        """Of the block-diagonal update; 0 for an adapter that changes nothing."""
        return _stable_rank(self.frobenius_norm, self.spectral_norm)


def update_statistics(decomposed: DecomposedAdapter) -> UpdateStatistics:
    """The statistics of an adapter in the SVD basis.

    Raises:
        ValueError: another basis, whose energies are no singular values.
    """
    if decomposed.basis is not RocBasis.SVD:
        raise ValueError(f"the components are in the {decomposed.basis} basis; their energies are no singular values")
    return UpdateStatistics(
        modules={
            path: ModuleStatistics(singular_values=tuple(_rounded(value) for value in roc_energies(rocs).tolist()))
            for path, rocs in decomposed.modules.items()
        }
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _stable_rank(frobenius_norm: float, spectral_norm: float) -> float:
    return (frobenius_norm / spectral_norm) ** 2 if spectral_norm > 0.0 else 0.0
