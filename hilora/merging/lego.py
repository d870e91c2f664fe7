"""LoRA-LEGO (arXiv 2409.16167): the components of several adapters, clustered into one adapter of a few.

    p_j = [a_j; b_j]   every component as a point, its norm shared evenly by both halves: ||a_j|| = ||b_j||   [ours]
    k-means of the points; p_j and -p_j are one component, a member counts with the sign that lies nearer     [ours]
    centre of a cluster, scaled to the mean norm of its members                       parameter reweighting   [paper]
    B sqrt(r / k),  r the mean rank of the adapters                                   output reweighting      [paper]

With as many clusters as components, and without either reweighting, the merged adapter is the sum of all.

Nothing is left to chance: the first centre is the largest point, each further one the point farthest from all centres,
the earlier point among equals. Points stand in the order of the adapters, which the caller fixes.

Shapes: N components of all adapters in one layer, K clusters, P = D + O length of a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.merging.fusion import check_sources

_MAX_ROUNDS = 100
"""Rounds of k-means; some tens of points settle within a few."""


def cluster_components(
    adapters: Sequence[DecomposedAdapter], *, weights: Sequence[float], num_rocs: int, reweights: bool = True
) -> DecomposedAdapter:
    """Merge adapters by clusters of their components.

    Args:
        adapters: at least one, in the trained basis [paper].
        weights: factor of each adapter's update, at least 0; each half of a component gets its square root.
        num_rocs: k, at least 1; a layer with fewer components keeps all of them.
        reweights: whether both of the paper's reweightings take place.

    Raises:
        ValueError: no adapters, another basis, layers that do not fit together, a negative weight, or k below 1.
    """
    check_sources(adapters, num_weights=len(weights))
    if num_rocs < 1 or min(weights) < 0:
        raise ValueError("clusters need num_rocs of at least 1 and weights of at least 0")
    paths = dict.fromkeys(path for adapter in adapters for path in adapter.modules)
    modules: dict[str, RankOneComponents] = {}
    for path in paths:
        there = [
            (adapter.modules[path], weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if path in adapter.modules
        ]
        modules[path] = _merged(there, num_rocs=num_rocs, reweights=reweights)
    return DecomposedAdapter(basis=RocBasis.TRAINED, modules=modules)


def _merged(sources: Sequence[tuple[RankOneComponents, float]], *, num_rocs: int, reweights: bool) -> RankOneComponents:
    num_in = sources[0][0].a_RD.shape[1]
    points_NP = torch.cat([_balanced(rocs, weight) for rocs, weight in sources])
    if len(points_NP) > num_rocs:
        cluster_N, sign_N = _clusters(points_NP, num_rocs)
    else:
        cluster_N, sign_N = torch.arange(len(points_NP)), torch.ones(len(points_NP), dtype=points_NP.dtype)
    num_clusters = int(cluster_N.max()) + 1
    centres_KP = _centres(points_NP * sign_N[:, None], cluster_N, num_clusters)
    scale = 1.0
    if reweights:
        members_K = torch.bincount(cluster_N, minlength=num_clusters)
        lengths_N = torch.linalg.vector_norm(points_NP, dim=1)
        mean_K = torch.zeros(num_clusters, dtype=points_NP.dtype).index_add_(0, cluster_N, lengths_N) / members_K
        own_K = torch.linalg.vector_norm(centres_KP, dim=1)
        centres_KP = centres_KP * torch.where(own_K > 0, mean_K / own_K, torch.zeros_like(own_K))[:, None]
        mean_rank = sum(rocs.num_rocs for rocs, _ in sources) / len(sources)
        scale = math.sqrt(mean_rank / num_clusters)
    return RankOneComponents(
        a_RD=centres_KP[:, :num_in].float().contiguous(), b_RO=(scale * centres_KP[:, num_in:]).float().contiguous()
    )


def _balanced(rocs: RankOneComponents, weight: float) -> torch.Tensor:
    """The components as points `[R, P]`. One without energy is a zero: its other half says nothing."""
    a_RD, b_RO = rocs.a_RD.double(), rocs.b_RO.double()
    a_R, b_R = torch.linalg.vector_norm(a_RD, dim=1), torch.linalg.vector_norm(b_RO, dim=1)
    length_R = (weight * a_R * b_R).sqrt()
    halves = [
        half * torch.where(norm_R > 0, length_R / norm_R, torch.zeros_like(norm_R))[:, None]
        for half, norm_R in ((a_RD, a_R), (b_RO, b_R))
    ]
    return torch.cat(halves, dim=1)


def _clusters(points_NP: torch.Tensor, num_clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cluster of each point, numbered without gaps, and the sign with which it is a member."""
    centres_KP = _first_centres(points_NP, num_clusters)
    cluster_N = torch.full((len(points_NP),), -1)
    sign_N = torch.ones(len(points_NP), dtype=points_NP.dtype)
    for _ in range(_MAX_ROUNDS):
        products_NK = points_NP @ centres_KP.T
        # ||p -+ c||^2 without ||p||^2, which is the same for all centres; argmin takes the first among equals.
        nearest_N = (centres_KP.square().sum(dim=1) - 2 * products_NK.abs()).argmin(dim=1)
        sign_N = torch.where(products_NK.gather(1, nearest_N[:, None])[:, 0] < 0, -1.0, 1.0).to(points_NP.dtype)
        if torch.equal(nearest_N, cluster_N):
            break
        cluster_N = nearest_N
        # A cluster that has lost all members goes: its centre says nothing any more.
        used_K, compact_N = torch.unique(cluster_N, return_inverse=True)
        centres_KP = _centres(points_NP * sign_N[:, None], compact_N, len(used_K))
        cluster_N = compact_N
    return torch.unique(cluster_N, return_inverse=True)[1], sign_N


def _first_centres(points_NP: torch.Tensor, num_clusters: int) -> torch.Tensor:
    chosen = [int(torch.linalg.vector_norm(points_NP, dim=1).argmax())]
    distance_N = torch.full((len(points_NP),), math.inf, dtype=points_NP.dtype)
    squares_N = points_NP.square().sum(dim=1)
    while len(chosen) < num_clusters:
        newest_P = points_NP[chosen[-1]]
        to_newest_N = squares_N + newest_P.square().sum() - 2 * (points_NP @ newest_P).abs()
        distance_N = torch.minimum(distance_N, to_newest_N)
        distance_N[chosen[-1]] = -math.inf
        chosen.append(int(distance_N.argmax()))
    return points_NP[chosen]


def _centres(points_NP: torch.Tensor, cluster_N: torch.Tensor, num_clusters: int) -> torch.Tensor:
    sums_KP = torch.zeros(num_clusters, points_NP.shape[1], dtype=points_NP.dtype).index_add_(0, cluster_N, points_NP)
    return sums_KP / torch.bincount(cluster_N, minlength=num_clusters)[:, None]
