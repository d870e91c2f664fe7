"""Generations that are let in first: their limits are checked before, and what they took is counted when they end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import Request

from services.common.inference_keys import KeyLimits
from services.router.admission import Admission, probable_tokens
from services.router.answer import CompletedGeneration
from services.router.entrypoints.access import caller_of
from services.router.generation import GenerateText
from services.router.limits import Standing
from services.router.merging import NumberedEvent, complete_all, stream_all
from services.router.request import GenerationRequest


async def stream_admitted(
    request: Request, admission: Admission, generate_text: GenerateText, orders: Sequence[GenerationRequest]
) -> AsyncGenerator[NumberedEvent]:
    """The events of a request's generations. Raises as `Admission.admit` and `stream_all`."""
    async with admission.admit(caller_of(request), num_tokens=probable_tokens(orders)) as admitted:
        request.state.standing = admitted.standing
        async with aclosing(stream_all(generate_text, orders)) as events:
            async for numbered in events:
                admitted.watch(numbered)
                yield numbered


async def complete_admitted(
    request: Request, admission: Admission, generate_text: GenerateText, orders: Sequence[GenerationRequest]
) -> list[CompletedGeneration]:
    """A request's answers as wholes. Raises as `Admission.admit` and `complete_all`."""
    async with admission.admit(caller_of(request), num_tokens=probable_tokens(orders)) as admitted:
        request.state.standing = admitted.standing
        done = await complete_all(generate_text, orders)
        for place, generation in enumerate(done):
            for choice in generation.choices:
                admitted.count(place, choice.finished)
        return done


def limit_headers(request: Request) -> dict[str, str]:
    """OpenAI's headers about the caller's limits, after it was let in; none where there are no limits."""
    limits: KeyLimits = caller_of(request).limits
    standing: Standing = request.state.standing
    told = {
        "x-ratelimit-limit-requests": limits.requests_per_minute,
        "x-ratelimit-remaining-requests": standing.remaining_requests,
        "x-ratelimit-limit-tokens": limits.tokens_per_minute,
        "x-ratelimit-remaining-tokens": standing.remaining_tokens,
    }
    return {name: str(value) for name, value in told.items() if value is not None}
