"""Fusion of factors (LoraRetriever, arXiv 2402.09997): `A = sum_i w_i A_i`, `B = sum_i w_i c_i B_i`.

    delta_W = B A = sum_i sum_j w_i w_j c_i B_i A_j

The terms with `i != j` belong to no adapter. With one adapter at weight 1 nothing changes; adapters that were trained
from different starting points have nothing in common that their factors could be summed by.

Shapes: D in-features, O out-features, R components of a module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis


def fuse(adapters: Sequence[DecomposedAdapter], *, weights: Sequence[float]) -> DecomposedAdapter:
    """Sum the factors of adapters.

    Args:
        adapters: at least one, in the trained basis: singular vectors of different updates are in no common order.
            Where ranks differ, missing rows count as zero; so does an adapter that does not touch a layer.
        weights: one for each.

    Returns:
        As many components in each layer as the largest of the adapters has there, in float32.

    Raises:
        ValueError: no adapters, another basis, or layers that do not fit together.
    """
    check_sources(adapters, num_weights=len(weights))
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.modules)
    return DecomposedAdapter(
        basis=RocBasis.TRAINED,
        modules={
            path: _fused(
                [
                    (adapter.modules[path], weight)
                    for adapter, weight in zip(adapters, weights, strict=True)
                    if path in adapter.modules
                ]
            )
            for path in paths
        },
    )


def check_sources(adapters: Sequence[DecomposedAdapter], *, num_weights: int) -> None:
    """Refuse what cannot be merged.

    Raises:
        ValueError: no adapters, another number of weights, another basis than the trained one, or layers of different
            widths under one name.
    """
    if not adapters or num_weights != len(adapters):
        raise ValueError(f"{len(adapters)} adapters and {num_weights} weights are no merge")
    if any(adapter.basis is not RocBasis.TRAINED for adapter in adapters):
        raise ValueError("adapters are merged in the trained basis")
    widths: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for path, rocs in adapter.modules.items():
            width = (rocs.a_RD.shape[1], rocs.b_RO.shape[1])
            if widths.setdefault(path, width) != width:
                raise ValueError(f"{path} has the widths {widths[path]} and {width}")


def _fused(sources: Sequence[tuple[RankOneComponents, float]]) -> RankOneComponents:
    num_rocs = max(rocs.num_rocs for rocs, _ in sources)
    first = sources[0][0]
    a_RD = torch.zeros(num_rocs, first.a_RD.shape[1], dtype=torch.float64)
    b_RO = torch.zeros(num_rocs, first.b_RO.shape[1], dtype=torch.float64)
    for rocs, weight in sources:
        a_RD[: rocs.num_rocs] += weight * rocs.a_RD.double()
        b_RO[: rocs.num_rocs] += weight * rocs.b_RO.double()
    return RankOneComponents(a_RD=a_RD.float(), b_RO=b_RO.float())
