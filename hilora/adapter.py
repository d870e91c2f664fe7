"""What a LoRA is, in our own terms: plain factors, and the same factors as rank-one components.

Shapes: D in-features, O out-features, R rank (number of rank-one components, ROCs) of one module.
The update of a module is

    delta_W [O, D] = scaling * lora_b [O, R] @ lora_a [R, D] = sum_j b_j a_j^T        (arXiv 2510.12266, sec. 3)

`LoRAFactors` is the left form, `RankOneComponents` the right one with `scaling` folded into `b`, so that
every decomposed adapter has scaling 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from hilora.errors import InvalidInput

if TYPE_CHECKING:
    # What routes reads plans and names, never a tensor: seconds of import and 200 MB that a router does without.
    import torch

ADAPTER_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A name is safe as a file name, a URL path segment, a metric label and a `model` value."""

RESERVED_NAMES = frozenset({"auto", "base"})
"""Names of `model` values with a meaning of their own."""

_REVISION_PREFIX_LENGTH = 12


class RocBasis(StrEnum):
    """In which basis an adapter's update is written as a sum of rank-one terms."""

    SVD = "svd"
    """`B' = U, A' = S V^T`: components ordered by energy, `|a'_j . x|` is the norm of the contribution."""
    TRAINED = "trained"
    """The factors as trained (the paper's)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAFactors:
    """The two factors of one wrapped linear layer."""

    lora_a: torch.Tensor
    """Down projection `[R, D]`."""
    lora_b: torch.Tensor
    """Up projection `[O, R]`."""
    scaling: float
    """`alpha / r`, or `alpha / sqrt(r)` for rsLoRA."""

    @property
    def lora_rank(self) -> int:
        """Number of rows of `lora_a`."""
        return int(self.lora_a.shape[0])


@dataclass(frozen=True, kw_only=True)
class LoRAAdapter:
    """A LoRA as read from its files: factors by module path (`model.layers.0.self_attn.q_proj`)."""

    base_model: str | None
    """What the adapter's config says it was trained on; informational."""
    modules: Mapping[str, LoRAFactors]

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))

    @property
    def lora_rank(self) -> int:
        """The largest rank over the modules: the adapter's number of ROCs, `r_i` of the routing equations."""
        return max((factors.lora_rank for factors in self.modules.values()), default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOneComponents:
    """The stacked ROCs of one module, scaling folded in."""

    a_RD: torch.Tensor
    """One down vector a row `[R, D]`."""
    b_RO: torch.Tensor
    """One up vector a row `[R, O]`: column j of `scaling * lora_b`."""

    @property
    def num_rocs(self) -> int:
        """Number of components R."""
        return int(self.a_RD.shape[0])


@dataclass(frozen=True, kw_only=True)
class DecomposedAdapter:
    """An adapter as ROCs in one basis, by module path."""

    basis: RocBasis
    modules: Mapping[str, RankOneComponents]

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))

    @property
    def lora_rank(self) -> int:
        """The largest number of ROCs over the modules."""
        return max((rocs.num_rocs for rocs in self.modules.values()), default=0)


def adapter_id_of(adapter_name: str, revision: str) -> str:
    """The identity of one immutable adapter version: `name@` and the head of its content hash."""
    return f"{adapter_name}@{revision[:_REVISION_PREFIX_LENGTH]}"


def check_adapter_name(adapter_name: str) -> str:
    """Return the name unchanged if it may be registered.

    Raises:
        InvalidInput: `invalid_adapter_name`, for a name that is reserved or does not match
            `ADAPTER_NAME_PATTERN`.
    """
    if adapter_name in RESERVED_NAMES or not ADAPTER_NAME_PATTERN.fullmatch(adapter_name):
        raise InvalidInput(
            f"{adapter_name[:160]!r} cannot be an adapter's name.",
            code="invalid_adapter_name",
            remedy=(
                "Use 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit, "
                f"and none of {', '.join(sorted(RESERVED_NAMES))}."
            ),
            place="name",
        )
    return adapter_name
