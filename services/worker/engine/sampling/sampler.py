"""Choosing the next token from logits.

Shapes: S rows to sample from, R rows treated together, V vocabulary.

Each request draws from its own generator, one number a token, and nothing computed for a row depends on other rows:
what a request says does not depend on what else is in the batch. `SamplingParams` tells the order of steps.

Rows without rules of their own and without randomness share one maximum over all logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilora.errors import GenerationFailed, HiloraError
from services.worker.engine.sampling.draws import draw_free, draw_limited
from services.worker.engine.sampling.logprobs import TokenLogprob, position_logprobs
from services.worker.engine.sampling.request_sampler import RequestSampler
from services.worker.engine.sampling.vocabulary_scan import best_tokens, row_groups


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
    best, likeliest = best_tokens(logits_SV)
    chosen: list[int | HiloraError] = [
        token_id if math.isfinite(value) else _non_finite() for token_id, value in zip(likeliest, best, strict=True)
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
        except Exception as error:  # a grammar's own bug; the rows before it have taken note, so it must end here
            sampled.append(_broken_rules(error))
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
    try:
        logits_RV = _ruled(logits_SV, rows, own)
    except HiloraError as error:
        if len(rows) == 1:
            return [error]
        # One broken grammar must not take the rows beside it along.
        return [token for row in rows for token in _choose(logits_SV, [row], samplers)]
    tokens: list[int | HiloraError] = [0] * len(rows)
    if not all(sampler.is_plain for sampler in own):
        best, likeliest = best_tokens(logits_RV)
        pairs = zip(likeliest, best, strict=True)
        tokens = [token_id if value > -math.inf else _dead_end() for token_id, value in pairs]
    drawn = [idx for idx, token in enumerate(tokens) if isinstance(token, int) and not own[idx].is_greedy]
    limited = [idx for idx in drawn if own[idx].is_limited]
    free = [idx for idx in drawn if not own[idx].is_limited]
    for idxs, draw in ((limited, draw_limited), (free, draw_free)):
        if idxs:
            part_RV = logits_RV if len(idxs) == len(rows) else logits_RV[idxs]
            for idx, token in zip(idxs, draw(part_RV, [own[idx] for idx in idxs]), strict=True):
                tokens[idx] = token
    return tokens


def _ruled(logits_SV: torch.Tensor, rows: Sequence[int], samplers: Sequence[RequestSampler]) -> torch.Tensor:
    """The rows' logits under their requests' rules, in float32 at least."""
    logits_RV = logits_SV[rows[0] : rows[0] + 1] if len(rows) == 1 else logits_SV[list(rows)]
    if logits_RV.dtype != torch.float64:
        logits_RV = logits_RV.float()
    if all(sampler.is_plain for sampler in samplers):
        return logits_RV
    pairs = zip(logits_RV, samplers, strict=True)
    return torch.stack([row_V if sampler.is_plain else sampler.shape(row_V) for row_V, sampler in pairs])


def _non_finite() -> GenerationFailed:
    return GenerationFailed(
        "The model's logits are not finite for this request.",
        code="non_finite_logits",
        remedy="One of the plan's adapters holds extreme values; retire it, or name other adapters.",
    )


def _broken_rules(error: Exception) -> GenerationFailed:
    return GenerationFailed(
        f"The request's grammar could not be followed: {type(error).__name__}.",
        code="grammar_failed",
        remedy="Simplify the grammar; other requests were not affected.",
    )


def _dead_end() -> GenerationFailed:
    return GenerationFailed(
        "The request's rules forbid every token.",
        code="grammar_dead_end",
        remedy="Loosen the grammar, or min_tokens and stop_token_ids if they contradict it.",
    )
