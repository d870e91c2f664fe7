"""Drawing one token from each of some rows, by inverse transform sampling with one random number each.

Shapes: R rows, V vocabulary, N blocks of a row, K candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from services.worker.engine.sampling.bucketed_row import BucketedRow
from services.worker.engine.sampling.request_sampler import RequestSampler
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.sampling.vocabulary_scan import LeadingTokens, block_at, block_masses, leading_tokens

_NUM_LEADING = 64
"""Candidates of a row that has no `top_k`: trained models rarely leave more within a nucleus."""
_MAX_LEADING = 1024
"""Beyond so many candidates, buckets are faster."""


def draw_free(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[int]:
    """A token of the whole vocabulary for each row; the mass is laid out in the order of token ids."""
    weights_RV = _weights(logits_RV, samplers)
    tokens: list[int] = []
    for row, masses_N in enumerate(block_masses(weights_RV)):
        cumulative_N = masses_N.cumsum()
        target = samplers[row].next_random() * cumulative_N[-1]
        block_idx = _place_of(target, cumulative_N)
        start, weights_B = block_at(weights_RV[row], block_idx)
        before = cumulative_N[block_idx - 1] if block_idx else 0.0
        tokens.append(start + _place_of(target - before, weights_B.cumsum(dtype=np.float64)))
    return tokens


def draw_limited(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[int]:
    """A token of what `min_p`, `top_k` and `top_p` leave of each row; the mass is laid out from the likeliest on."""
    top_ks = [sampler.params.top_k for sampler in samplers]
    num_leading = max(_NUM_LEADING, *(top_k for top_k in top_ks if top_k <= _MAX_LEADING), 0)
    totals: Sequence[float | None] = [None] * len(samplers)
    if any(_needs_total(sampler.params) for sampler in samplers):
        totals = block_masses(_weights(logits_RV, samplers)).sum(axis=1).tolist()
    tokens: list[int] = []
    for row, leading in enumerate(leading_tokens(logits_RV, num_leading)):
        sampler = samplers[row]
        weights_K = _kept_weights(leading, sampler, totals[row])
        if weights_K is None:
            scores_V = _scores(logits_RV[row : row + 1], [sampler])[0].cpu().numpy()
            tokens.append(BucketedRow(scores_V).draw(sampler.params, sampler.next_random()))
            continue
        cumulative_K = weights_K.cumsum()
        tokens.append(leading.token_at(_place_of(sampler.next_random() * cumulative_K[-1], cumulative_K)))
    return tokens


def _needs_total(params: SamplingParams) -> bool:
    """Whether the nucleus is a share of the whole row: nothing is cut before."""
    return params.top_p < 1 and params.top_k == 0 and params.min_p == 0


def _kept_weights(leading: LeadingTokens, sampler: RequestSampler, total: float | None) -> NDArray[np.float64] | None:
    """Weights of the leading tokens that the limits keep; None if tokens beyond the certain ones may be kept.

    Args:
        leading: of one row; the likeliest token has weight 1.
        sampler: whose limits.
        total: weight of the whole row; may be None where these limits do not need it.
    """
    params = sampler.params
    scores_K = (leading.values_K.astype(np.float64) - leading.values_K[0]) * sampler.inverse_temperature
    num_kept = int(np.searchsorted(-scores_K, np.inf))
    # Whether everything that the limits may keep is known: the row ends here, or what follows is forbidden.
    is_whole = leading.num_certain == len(scores_K) or num_kept < len(scores_K)
    num_certain = num_kept if is_whole else leading.num_certain
    if params.min_p > 0:
        num_likely = int(np.searchsorted(-scores_K, -np.log(params.min_p), side="right"))
        is_whole = is_whole or num_likely < len(scores_K)
        num_kept = min(num_kept, num_likely)
    if 0 < params.top_k <= num_kept:
        is_whole, num_kept = True, params.top_k
    weights_K = np.exp(scores_K[:num_kept])
    if params.top_p < 1:
        cumulative_K = weights_K.cumsum()
        of_row = total if _needs_total(params) else None
        mass = cumulative_K[-1] if is_whole else of_row
        if mass is None:
            return None
        num_nucleus = int(np.searchsorted(cumulative_K, params.top_p * mass)) + 1
        is_whole = is_whole or num_nucleus <= num_kept
        num_kept = min(num_kept, num_nucleus)
    return weights_K[:num_kept] if is_whole and num_kept <= num_certain else None


def _weights(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> torch.Tensor:
    """Unnormalised probabilities; the likeliest token of each row has weight 1."""
    return _scores(logits_RV, samplers).exp_()


def _scores(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> torch.Tensor:
    """Logits relative to the largest of their row, so that a tiny temperature does not overflow, over temperature."""
    scale_R1 = torch.tensor(
        [[sampler.inverse_temperature] for sampler in samplers], dtype=logits_RV.dtype, device=logits_RV.device
    )
    return (logits_RV - logits_RV.amax(-1, keepdim=True)).mul_(scale_R1)


def _place_of(target: float, cumulative_K: NDArray[np.float64]) -> int:
    """Where a point falls; rounding at the end must not lead beyond the last weight that is not zero."""
    last = int(np.searchsorted(cumulative_K, cumulative_K[-1]))
    return min(int(np.searchsorted(cumulative_K, target, side="right")), last)
