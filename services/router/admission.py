"""The gate of the expensive calls: limits of the caller, and of this router as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hilora.errors import Exhausted
from services.common.inference_keys import Caller
from services.router.answer import GenerationFinished, GenerationStarted
from services.router.limits import Ask, Grant, RateLimiter, Standing
from services.router.merging import NumberedEvent
from services.router.request import ChatPrompt, GenerationRequest, TokenPrompt

_CHARACTERS_PER_TOKEN = 4
"""Of English text under today's tokenizers; only a first guess that is corrected when the answer is there."""

_TYPICAL_ANSWER = 256


@dataclass(slots=True)
class Admitted:
    """A request that was let in, and what it took so far."""

    standing: Standing
    _prompt_tokens: dict[int, int] = field(default_factory=dict[int, int])
    _answer_tokens: int = 0

    def watch(self, numbered: NumberedEvent) -> None:
        """Count what an event tells."""
        place, event = numbered
        if isinstance(event, GenerationStarted):
            self._prompt_tokens[place] = event.num_prompt_tokens
        elif isinstance(event, GenerationFinished):
            self.count(place, event)

    def count(self, place: int, finished: GenerationFinished) -> None:
        """Count an answer that ended."""
        self._prompt_tokens[place] = finished.num_prompt_tokens
        self._answer_tokens += finished.num_completion_tokens

    def add(self, num_tokens: int) -> None:
        """Count tokens of another kind of work."""
        self._answer_tokens += num_tokens

    @property
    def num_tokens(self) -> int:
        """What the request took."""
        return sum(self._prompt_tokens.values()) + self._answer_tokens


class Admission:
    """Lets requests in.

    Args:
        limiter: counts what callers ask for.
        max_in_flight: requests that this router works on at once; more are refused.
        lease_seconds: longest time a request may take.
    """

    def __init__(self, *, limiter: RateLimiter, max_in_flight: int, lease_seconds: float) -> None:
        self._limiter = limiter
        self._max_in_flight = max_in_flight
        self._lease_seconds = lease_seconds
        self._num_in_flight = 0
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def num_in_flight(self) -> int:
        """Requests that are being worked on."""
        return self._num_in_flight

    @asynccontextmanager
    async def admit(self, caller: Caller, *, num_tokens: int) -> AsyncGenerator[Admitted]:
        """Work on a request within the block; its counts are settled when the block is left.

        Args:
            caller: who asks.
            num_tokens: what it will probably take.

        Raises:
            Exhausted: `router_busy`.
            RateLimited: a limit of the caller is reached.
        """
        if self._num_in_flight >= self._max_in_flight:
            raise Exhausted(
                f"This router works on {self._max_in_flight} requests already.",
                code="router_busy",
                remedy="Send the request again in a moment, or ask the operator for more routers.",
            )
        self._num_in_flight += 1
        try:
            if caller.limits.is_unlimited:
                yield Admitted(standing=Standing(remaining_requests=None, remaining_tokens=None))
                return
            ask = Ask(
                caller=caller.name, limits=caller.limits, num_tokens=num_tokens, lease_seconds=self._lease_seconds
            )
            grant: Grant = await self._limiter.admit(ask)
            admitted = Admitted(standing=grant.standing)
            try:
                yield admitted
            finally:
                self._settle(grant, admitted.num_tokens)
        finally:
            self._num_in_flight -= 1

    def _settle(self, grant: Grant, num_tokens: int) -> None:
        """In a task of its own: where a client left, whatever is awaited here is cancelled."""
        settling = asyncio.create_task(self._limiter.settle(grant, num_tokens=num_tokens), name="settle")
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    async def settled(self) -> None:
        """Return once every request that ended is counted."""
        while self._settling:
            await asyncio.wait(self._settling)


def probable_tokens(requests: Sequence[GenerationRequest]) -> int:
    """What requests will probably take: their prompts by their length, their answers by their limit."""
    return sum(_prompt_tokens(request) + _answer_tokens(request) for request in requests)


def _prompt_tokens(request: GenerationRequest) -> int:
    match request.prompt:
        case TokenPrompt(token_ids=token_ids):
            return len(token_ids)
        case ChatPrompt(messages=messages):
            return 1 + sum(len(message.content) for message in messages) // _CHARACTERS_PER_TOKEN
        case prompt:
            return 1 + len(prompt.text) // _CHARACTERS_PER_TOKEN


def _answer_tokens(request: GenerationRequest) -> int:
    # Who sets no limit seldom wants the whole context.
    return min(request.sampling.max_tokens or _TYPICAL_ANSWER, _TYPICAL_ANSWER) * request.sampling.num_choices
