"""Choosing the next token from logits.

Shapes: S rows to sample from, R rows treated together, V vocabulary, N blocks of a row, K candidates of a row.

Each request draws from its own generator, one number a token, and nothing computed for a row depends on other rows:
what a request says does not depend on what else is in the batch. `SamplingParams` tells the order of steps.

Rows without rules of their own and without randomness share one maximum over all logits. A drawn row is read once for
its block maxima or its block masses; only the blocks that matter are looked at closely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hilora.errors import GenerationFailed, HiloraError
from services.worker.engine.logprobs import TokenLogprob, position_logprobs
from services.worker.engine.request_sampler import RequestSampler
from services.worker.engine.vocabulary_scan import (
    LeadingTokens,
    all_tokens,
    block_at,
    block_masses,
    leading_tokens,
    row_groups,
)

_NUM_LEADING = 64
"""Candidates to begin with: trained models rarely leave more within a nucleus."""
_MAX_LEADING = 1024
"""A request that keeps more than these is sorted whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledToken:
    """A chosen token."""

    token_id: int
    logprob: TokenLogprob | None = None
    """Its log-probability, if the request asks for it."""
    top_logprobs: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens, as many as the request asks for."""
    completes_grammar: bool = False
    """Whether the request's grammar allows nothing after it."""


def sample(logits_SV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[SampledToken | HiloraError]:
    """One token per row, or the error that ends that row's request.

    A row whose maximum is not finite (NaN anywhere, or infinity) yields `non_finite_logits`; a row whose grammar allows
    no token yields `grammar_dead_end`. The samplers of the other rows have taken note of their tokens.
    """
    if not samplers:
        return []
    best_S, argmax_S = logits_SV.max(dim=-1)
    chosen: list[int | HiloraError] = [
        token_id if is_finite else _non_finite()
        for token_id, is_finite in zip(argmax_S.tolist(), torch.isfinite(best_S).tolist(), strict=True)
    ]
    drawn = [
        row
        for row, sampler in enumerate(samplers)
        if isinstance(chosen[row], int) and not (sampler.is_greedy and sampler.is_plain)
    ]
    for group in row_groups(len(drawn), logits_SV.device):
        for row, token in zip(drawn[group], _choose(logits_SV, drawn[group], samplers), strict=True):
            chosen[row] = token
    return _take_note(logits_SV, samplers, chosen)


def _take_note(
    logits_SV: torch.Tensor, samplers: Sequence[RequestSampler], chosen: Sequence[int | HiloraError]
) -> list[SampledToken | HiloraError]:
    sampled: list[SampledToken | HiloraError] = []
    for sampler, token in zip(samplers, chosen, strict=True):
        if isinstance(token, HiloraError):
            sampled.append(token)
            continue
        try:
            sampled.append(SampledToken(token_id=token, completes_grammar=sampler.accept(token)))
        except HiloraError as error:
            sampled.append(error)
    told = [
        (row, token, num_top)
        for row, token in enumerate(sampled)
        if isinstance(token, SampledToken) and (num_top := samplers[row].num_logprobs) is not None
    ]
    if told:
        logprobs = position_logprobs(
            logits_SV[[row for row, _, _ in told]],
            [token.token_id for _, token, _ in told],
            [num_top for _, _, num_top in told],
        )
        for (row, token, _), found in zip(told, logprobs, strict=True):
            sampled[row] = SampledToken(
                token_id=token.token_id,
                logprob=found.chosen,
                top_logprobs=found.top,
                completes_grammar=token.completes_grammar,
            )
    return sampled


def _choose(
    logits_SV: torch.Tensor, rows: Sequence[int], samplers: Sequence[RequestSampler]
) -> list[int | HiloraError]:
    """Tokens of rows that are drawn, or follow rules of their own."""
    own = [samplers[row] for row in rows]
    ruled: list[torch.Tensor] = []
    for row, sampler in zip(rows, own, strict=True):
        row_V = logits_SV[row]
        row_V = row_V if row_V.dtype == torch.float64 else row_V.float()
        try:
            ruled.append(row_V if sampler.is_plain else sampler.shape(row_V))
        except HiloraError as error:
            if len(rows) == 1:
                return [error]
            # One broken grammar must not take the rows beside it along.
            return [token for alone in rows for token in _choose(logits_SV, [alone], samplers)]
    logits_RV = ruled[0][None] if len(ruled) == 1 else torch.stack(ruled)
    best_R, argmax_R = logits_RV.max(dim=-1)
    best, argmax = best_R.tolist(), argmax_R.tolist()
    tokens: list[int | HiloraError] = [
        token_id if value > -np.inf else _dead_end() for token_id, value in zip(argmax, best, strict=True)
    ]
    drawn = [idx for idx, token in enumerate(tokens) if isinstance(token, int) and not own[idx].is_greedy]
    limited = [idx for idx in drawn if own[idx].is_limited]
    free = [idx for idx in drawn if not own[idx].is_limited]
    for idxs, draw in ((limited, _draw_limited), (free, _draw_free)):
        if idxs:
            part_RV = logits_RV if len(idxs) == len(rows) else logits_RV[idxs]
            for idx, token in zip(idxs, draw(part_RV, [own[idx] for idx in idxs]), strict=True):
                tokens[idx] = token
    return tokens


def _draw_free(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[int]:
    """Inverse transform sampling over the whole vocabulary, in the order of token ids."""
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


def _draw_limited(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[int]:
    """Inverse transform sampling over what the limits leave, likeliest first."""
    largest_k = max(sampler.params.top_k for sampler in samplers)
    num_leading = max(_NUM_LEADING, largest_k) if largest_k <= _MAX_LEADING else _NUM_LEADING
    totals: Sequence[float | None] = [None] * len(samplers)
    if any(sampler.params.top_p < 1 and sampler.params.top_k == 0 for sampler in samplers):
        totals = block_masses(_weights(logits_RV, samplers)).sum(axis=1).tolist()
    tokens: list[int] = []
    for row, leading in enumerate(leading_tokens(logits_RV, num_leading)):
        params = samplers[row].params
        candidates = leading
        weights_K = _kept_weights(candidates, samplers[row], totals[row])
        if weights_K is None and params.top_k <= _MAX_LEADING:
            candidates = leading_tokens(logits_RV[row : row + 1], _MAX_LEADING)[0]
            weights_K = _kept_weights(candidates, samplers[row], totals[row])
        if weights_K is None:
            candidates = all_tokens(logits_RV[row])
            weights_K = _kept_weights(candidates, samplers[row], totals[row])
        assert weights_K is not None, "a whole row decides every limit"
        cumulative_K = weights_K.cumsum()
        tokens.append(candidates.token_at(_place_of(samplers[row].next_random() * cumulative_K[-1], cumulative_K)))
    return tokens


def _kept_weights(leading: LeadingTokens, sampler: RequestSampler, total: float | None) -> NDArray[np.float64] | None:
    """Weights of the leading tokens that the limits keep; None if tokens beyond the certain ones would be kept.

    Args:
        leading: of one row; the likeliest token has weight 1.
        sampler: whose limits.
        total: weight of the whole row; may be None with a `top_k`.
    """
    params = sampler.params
    scores_K = (leading.values_K.astype(np.float64) - leading.values_K[0]) * sampler.inverse_temperature
    num_possible = int(np.searchsorted(-scores_K, np.inf))
    is_bounded = num_possible < len(scores_K) or leading.num_certain == len(scores_K)
    num_kept = num_possible
    if params.min_p > 0:
        num_likely = int(np.searchsorted(-scores_K, -np.log(params.min_p), side="right"))
        is_bounded = is_bounded or num_likely < len(scores_K)
        num_kept = min(num_kept, num_likely)
    if 0 < params.top_k <= num_kept:
        is_bounded, num_kept = True, params.top_k
    weights_K = np.exp(scores_K[:num_kept])
    if params.top_p < 1:
        cumulative_K = weights_K.cumsum()
        whole = cumulative_K[-1] if is_bounded else total
        if whole is None:
            return None
        num_nucleus = int(np.searchsorted(cumulative_K, params.top_p * whole)) + 1
        is_bounded = is_bounded or num_nucleus <= len(cumulative_K)
        num_kept = min(num_kept, num_nucleus)
    is_certain = is_bounded and (num_kept <= leading.num_certain or num_kept == num_possible < len(scores_K))
    return weights_K[:num_kept] if is_certain else None


def _weights(logits_RV: torch.Tensor, samplers: Sequence[RequestSampler]) -> torch.Tensor:
    """Unnormalised probabilities; the likeliest token of each row has weight 1."""
    scale_R1 = torch.tensor(
        [[sampler.inverse_temperature] for sampler in samplers], dtype=logits_RV.dtype, device=logits_RV.device
    )
    return (logits_RV - logits_RV.amax(-1, keepdim=True)).mul_(scale_R1).exp_()


def _place_of(target: float, cumulative_K: NDArray[np.float64]) -> int:
    """Where a point falls; rounding at the end must not lead beyond the last weight that is not zero."""
    last = int(np.searchsorted(cumulative_K, cumulative_K[-1]))
    return min(int(np.searchsorted(cumulative_K, target, side="right")), last)


def _non_finite() -> GenerationFailed:
    return GenerationFailed(
        "The model's logits are not finite for this request.",
        code="non_finite_logits",
        remedy="One of the plan's adapters holds extreme values; retire it, or name other adapters.",
    )


def _dead_end() -> GenerationFailed:
    return GenerationFailed(
        "The request's rules forbid every token.",
        code="grammar_dead_end",
        remedy="Loosen the grammar, or min_tokens and stop_token_ids if they contradict it.",
    )
