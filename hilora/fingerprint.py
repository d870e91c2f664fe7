"""A few numbers that say which update an adapter makes, whatever basis its factors are written in.

Shapes: D in-features, O out-features, R rank, K projections.

    p_k = sum over modules of  u_k^T (c B A) v_k = sum_r (u_k . c b_r)(a_r . v_k)

with signs `u_k` `[O]` and `v_k` `[D]` that follow from k and the module's path alone. It is a random projection of the
whole update: `E[p_k^2] = ||delta||^2`, so the fingerprints of two updates differ by about the norm of their difference.
Rotating the factors, `B Q` and `Q^-1 A`, changes nothing, nor does the order of ranks or how `c` is split among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hilora.adapter import LoRAAdapter, LoRAFactors

NUM_PROJECTIONS = 16
"""Two different updates agree in all of them, within the tolerance below, with a probability under 1e-15."""

SAME_UPDATE_TOLERANCE = 0.01
"""Two updates are one if they differ by less than this share of their norm: above what bfloat16 rounds."""

_SIGMAS = 5.0


def fingerprint(adapter: LoRAAdapter) -> tuple[float, ...]:
    """The projections of an adapter's update, `[K]`."""
    total_K = torch.zeros(NUM_PROJECTIONS, dtype=torch.float64)
    for path, factors in adapter.modules.items():
        a_RK = factors.lora_a.to(torch.float64) @ _signs(path, "in", factors.lora_a.shape[1]).T
        b_RK = factors.lora_b.to(torch.float64).T @ _signs(path, "out", factors.lora_b.shape[0]).T
        total_K += factors.scaling * (a_RK * b_RK).sum(dim=0)
    return tuple(float(value) for value in total_K)


def update_norms(adapter: LoRAAdapter) -> dict[str, float]:
    """The Frobenius norm of `c B A` by module path, from Gram matrices of the factors."""
    return {path: float(_inner(factors, factors)) ** 0.5 for path, factors in adapter.modules.items()}


def may_be_same(one_K: tuple[float, ...], other_K: tuple[float, ...], *, norm: float) -> bool:
    """Whether two fingerprints are so close that the updates may be one.

    Args:
        one_K: of one update.
        other_K: of the other; of another number of projections is another fingerprint.
        norm: Frobenius norm of either update.
    """
    if len(one_K) != len(other_K) or not one_K:
        return False
    limit = _SIGMAS * SAME_UPDATE_TOLERANCE * norm
    # The first projection tells most pairs apart: a pool is searched in a moment.
    return all(abs(one - other) <= limit for one, other in zip(one_K, other_K, strict=True))


def relative_distance(one: LoRAAdapter, other: LoRAAdapter) -> float:
    """`||delta_1 - delta_2|| / max(||delta_1||, ||delta_2||)` over all modules, without forming an update; 0 for two
    updates of zero. A module that one adapter lacks counts as zero there."""
    squared = squared_one = squared_other = 0.0
    for path in one.modules.keys() | other.modules.keys():
        first, second = one.modules.get(path), other.modules.get(path)
        norm_one = _inner(first, first) if first is not None else 0.0
        norm_other = _inner(second, second) if second is not None else 0.0
        squared_one, squared_other = squared_one + norm_one, squared_other + norm_other
        if first is not None and second is not None and _shape(first) == _shape(second):
            squared += float(_difference_squared(first, second))
        else:
            squared += norm_one + norm_other
    largest = max(squared_one, squared_other)
    return (squared / largest) ** 0.5 if largest else 0.0


def _difference_squared(one: LoRAFactors, other: LoRAFactors) -> float:
    """Of the stacked factors `[c1 B1, -c2 B2] [A1; A2]`: nothing cancels, as it would in a^2 + b^2 - 2ab."""
    a_RD = torch.cat([one.lora_a.to(torch.float64), other.lora_a.to(torch.float64)])
    b_OR = torch.cat(
        [one.lora_b.to(torch.float64) * one.scaling, other.lora_b.to(torch.float64) * -other.scaling], dim=1
    )
    r_a = torch.linalg.qr(a_RD.T, mode="r").R
    r_b = torch.linalg.qr(b_OR, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.T).square())


def _inner(one: LoRAFactors, other: LoRAFactors) -> float:
    gram_a = one.lora_a.to(torch.float64) @ other.lora_a.to(torch.float64).T
    gram_b = one.lora_b.to(torch.float64).T @ other.lora_b.to(torch.float64)
    return max(0.0, one.scaling * other.scaling * float((gram_a * gram_b).sum()))


def _shape(factors: LoRAFactors) -> tuple[int, int]:
    return int(factors.lora_b.shape[0]), int(factors.lora_a.shape[1])


def _signs(path: str, side: str, num_features: int) -> torch.Tensor:
    """`[K, num_features]` of plus and minus one. From a hash and not from a generator: it must never change again."""
    num_bits = NUM_PROJECTIONS * num_features
    data = hashlib.shake_256(f"hilora-fingerprint-1/{side}/{path}".encode()).digest((num_bits + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=num_bits)
    return torch.from_numpy(bits.reshape(NUM_PROJECTIONS, num_features)).to(torch.float64).mul_(2.0).sub_(1.0)


def norms_by_kind(norms: Mapping[str, float]) -> dict[str, float]:
    """The root mean square of module norms by kind: the last part of the path, such as `q_proj`.

    Args:
        norms: by module path, as `update_norms` gives them.
    """
    squares: dict[str, list[float]] = {}
    for path, norm in norms.items():
        squares.setdefault(path.rpartition(".")[2], []).append(norm * norm)
    return {kind: float(np.mean(values)) ** 0.5 for kind, values in sorted(squares.items())}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterTraits:
    """What a pool remembers of an adapter's update, to compare later ones with it."""

    fingerprint: tuple[float, ...]
    update_norm: float
    """Frobenius norm of the whole update."""
    norm_by_kind: Mapping[str, float]
    """Root mean square of the modules' norms by kind, such as `q_proj`."""


def traits_of(adapter: LoRAAdapter) -> AdapterTraits:
    """The traits of an adapter with finite values."""
    norms = update_norms(adapter)
    return AdapterTraits(
        fingerprint=fingerprint(adapter),
        update_norm=sum(norm * norm for norm in norms.values()) ** 0.5,
        norm_by_kind=norms_by_kind(norms),
    )
