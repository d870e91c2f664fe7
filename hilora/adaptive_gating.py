"""Per-token factors of adapters and ROCs, for the strategies that let each token choose among a plan's adapters.

    h = A x;   g = GATE(h, x);   y = W0 x + sum_j g_j h_j b_j,     g_j = (plan's constant factor of j) * alpha

`alpha` belongs to a token and an adapter, under SMoRA to a token and a ROC:

    Arrow      alpha_i = softmax_i |v_i . x| / T,  v_i the first right singular vector of the update     2405.11157
    SpectR     alpha_i = softmax_i ||B_i A_i x|| / T                                                     2504.03454
    SEQR       alpha_i = 1 for the largest ||B_i A_i x||, else 0                                         2509.18093
    PHATGOOSE  alpha_i = softmax_i (u_i . z) / (sqrt(D) T),  u_i, z the gate vector and x standardised   2402.05859
    RAMoLE     alpha_i = softmax_i (q . k_i) / (sqrt(G) T),  q = A_r x,  k_i = B_r^T B_i A_i x           2406.16989
    SMoRA      alpha_j = softmax_j (w_j . x) / T over the ROCs kept by (w_j . x) + bias_j                2501.15103

[paper] the scores; a softmax over the `top_k` best only (in Arrow as PEFT does it). [ours] T everywhere but in Arrow;
SpectR mixes outputs, where its authors' code fuses factors; SEQR without its offline calibration of the norms; SMoRA's
softmax over the kept ROCs, with a bias that chooses and does not weigh.

In the SVD basis `b_j` are orthonormal, so that `||h_i||` is the length of an adapter's output and `h_i1 / ||a_i1||` is
Arrow's product: both fall out of the shrink. Among equal scores the adapter that comes first in the plan is kept.

Shapes: T tokens, D in-features, L the plan's adapters that have components in the layer, S their components, R those
side by side, G rank of RAMoLE's router.
"""

from __future__ import annotations

import math

import torch

from hilora.token_gating import largest_mask


def arrow_scores(first_TL: torch.Tensor, *, first_norms_TL: torch.Tensor) -> torch.Tensor:
    """`|v_i . x|`, `[T, L]`, from responses in the SVD basis.

    Args:
        first_TL: the tokens' responses to each adapter's first component.
        first_norms_TL: `||a_i1||`, the largest singular value; one row for all tokens will do. An update that is zero
            scores 0.
    """
    return exact(first_TL).abs() * torch.where(first_norms_TL > 0, first_norms_TL.reciprocal(), 0.0)


def output_norms(h_TLS: torch.Tensor) -> torch.Tensor:
    """`||B_i A_i x||`, `[T, L]`, from responses in the SVD basis, 0 in slots that an adapter has no component for."""
    return torch.linalg.vector_norm(exact(h_TLS), dim=-1)


def phatgoose_scores(projections_TL: torch.Tensor, *, deviations_T: torch.Tensor, num_features: int) -> torch.Tensor:
    """Scaled products of standardised vectors, `[T, L]`.

    Args:
        projections_TL: `u_i . x` for gate vectors that are `standardized` already. Their entries sum to 0, so that the
            mean of `x` cancels.
        deviations_T: standard deviation of the entries of each `x`. A constant `x` scores 0.
        num_features: D.
    """
    scale_T = torch.where(deviations_T > 0, deviations_T.reciprocal(), 0.0) / math.sqrt(num_features)
    return exact(projections_TL) * scale_T[:, None]


def standardized(vectors_LD: torch.Tensor) -> torch.Tensor:
    """Each row with mean 0 and variance 1; a constant row becomes 0."""
    centred = vectors_LD - vectors_LD.mean(dim=-1, keepdim=True)
    deviation = centred.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centred / deviation, 0.0)


def deviations(x_TD: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each row's entries around their mean, `[T]`."""
    centred_TD = exact(x_TD) - exact(x_TD).mean(dim=-1, keepdim=True)
    # Several times faster than torch.std, whose single pass cannot be vectorised.
    return torch.linalg.vector_norm(centred_TD, dim=-1) / math.sqrt(x_TD.shape[-1])


def ramole_keys(b_RO: torch.Tensor, router_b_OG: torch.Tensor) -> torch.Tensor:
    """`B_r^T b_j` of each ROC, `[R, G]`. With it no token's score costs work of the size of the output."""
    return b_RO @ router_b_OG


def ramole_scores(products_TLS: torch.Tensor, h_TLS: torch.Tensor, *, router_rank: int) -> torch.Tensor:
    """`q . k_i / sqrt(G)`, `[T, L]`.

    Args:
        products_TLS: `q . k` of the router's down-projection `q` of the tokens with the components' `ramole_keys`.
        h_TLS: the tokens' responses, in any basis, 0 in slots that an adapter has no component for.
        router_rank: G.
    """
    return (exact(products_TLS) * exact(h_TLS)).sum(dim=-1) / math.sqrt(router_rank)


def softmax_factors(
    scores_TN: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    top_k: int | torch.Tensor,
    contest_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Factors `[T, N]` that sum to 1 over what a token keeps, and are 0 elsewhere.

    Args:
        scores_TN: of adapters, or of ROCs; N is at least 1. What a token does not have scores `-inf`.
        temperature: divides the scores; a tensor `[T, 1]` where tokens differ.
        top_k: how many a token keeps; 0 keeps all. Likewise a tensor, of numbers from 1 to N.
        contest_TN: what the keeping goes by, where that is not the scores.
    """
    if isinstance(top_k, torch.Tensor) or 0 < top_k < scores_TN.shape[1]:
        is_kept_TN = largest_mask(scores_TN if contest_TN is None else contest_TN, num_kept=top_k)
        scores_TN = torch.where(is_kept_TN, scores_TN, -math.inf)
    return torch.softmax(scores_TN / temperature, dim=-1)


def best_factors(scores_TL: torch.Tensor) -> torch.Tensor:
    """1 for the adapter of largest score, else 0, `[T, L]`."""
    return largest_mask(scores_TL, num_kept=1).to(scores_TL.dtype)


def exact(values: torch.Tensor) -> torch.Tensor:
    """At least single precision, in which scores are computed: half precision overflows in squares and mixes up near
    ones."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values
