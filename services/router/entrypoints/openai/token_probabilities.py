"""Log-probabilities in OpenAI's two shapes: that of chat, and the older one of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.router.answer import PositionLogprobs, TokenLogprob

JsonObject = dict[str, Any]


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> JsonObject:
    """`choices[].logprobs` of a chat answer."""
    return {
        "content": [
            {**_chat_token(position.chosen), "top_logprobs": [_chat_token(token) for token in position.top]}
            for position in positions
        ],
        "refusal": None,
    }


def completion_logprobs(
    positions: Sequence[PositionLogprobs], *, first_offset: int, first_token: str | None = None
) -> JsonObject:
    """`choices[].logprobs` of a completion.

    Args:
        positions: of the tokens that the text consists of.
        first_offset: where the first of them begins in the text of the choice.
        first_token: a token before them that nothing could predict: the first one of an echoed prompt.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    offset = first_offset
    if first_token is not None:
        tokens.append(first_token)
        values.append(None)
        top.append(None)
        offsets.append(offset)
        offset += len(first_token)
    for position in positions:
        token = _text(position.chosen)
        tokens.append(token)
        values.append(position.chosen.logprob)
        top.append({_text(other): other.logprob for other in position.top} if position.top else None)
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _chat_token(token: TokenLogprob) -> JsonObject:
    return {"token": _text(token), "logprob": token.logprob, "bytes": list(token.token_bytes)}


def _text(token: TokenLogprob) -> str:
    return token.token_bytes.decode(errors="replace")
