"""Log-probabilities of tokens under the model itself.

Shapes: n rows of logits, V vocabulary.

They are the log-softmax of the logits as the model gave them, before temperature, penalties, biases and grammar: what a
token was worth to the model, not what the request's rules left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.worker.engine.sampling.vocabulary_scan import likeliest_tokens

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know; OpenAI uses the same number."""
_MAX_ROWS = 16
"""Rows that are widened to float32 at a time: a prompt's logits are large enough as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float
    token_bytes: bytes = b""
    """The token's own bytes, which need not be whole characters; empty until they are filled in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionLogprobs:
    """What the model thought at one position."""

    chosen: TokenLogprob
    """The token that stands there."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens, likeliest first, of equals the lower id first; `chosen` may be among them."""


def position_logprobs(
    logits_nV: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[PositionLogprobs]:
    """What the model thought of one token per row.

    Args:
        logits_nV: finite at each row's maximum.
        token_ids: the token of each row.
        num_top: how many of the likeliest tokens to tell for each row.
    """
    found: list[PositionLogprobs] = []
    for start in range(0, len(token_ids), _MAX_ROWS):
        part = slice(start, start + _MAX_ROWS)
        found += _some_logprobs(logits_nV[part].float(), token_ids[part], num_top[part])
    return found


def _some_logprobs(logits_nV: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[PositionLogprobs]:
    total_n = logits_nV.logsumexp(dim=-1)
    chosen_n1 = torch.tensor(token_ids, dtype=torch.int64, device=logits_nV.device)[:, None]
    chosen = (logits_nV.gather(1, chosen_n1)[:, 0] - total_n).tolist()
    totals = total_n.tolist()
    top = likeliest_tokens(logits_nV, max(num_top)) if max(num_top) else [()] * len(token_ids)
    return [
        PositionLogprobs(
            chosen=_logprob(token_ids[row], chosen[row]),
            top=tuple(_logprob(token_id, logit - totals[row]) for token_id, logit in top[row][: num_top[row]]),
        )
        for row in range(len(token_ids))
    ]


def _logprob(token_id: int, logprob: float) -> TokenLogprob:
    return TokenLogprob(token_id=token_id, logprob=max(logprob, MIN_LOGPROB))
