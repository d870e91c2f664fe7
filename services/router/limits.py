"""What a caller may ask for, counted: requests and tokens over time, and requests at once.

Counts are kept for slots of time and summed over a window of them, the current slot and those that lie wholly or partly
in the window before it. So no window of a minute ever holds more than the limit, wherever it begins, and at most one
slot's share less is granted: 1 in 61.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hilora.errors import RateLimited
from services.common.inference_keys import KeyLimits

MINUTE_SLOTS = 60
"""Slots of a minute's window: seconds."""
DAY_SLOTS = 96
"""Slots of a day's window: quarters of an hour."""
SECONDS_PER_DAY_SLOT = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A request that wants to be admitted."""

    caller: str
    """Whose counts it goes to."""
    limits: KeyLimits
    num_tokens: int
    """What it will probably take, prompt and answer together; corrected when it ends."""
    lease_seconds: float
    """After this time it no longer counts as running, should its router die."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a caller stands, once a request is admitted."""

    remaining_requests: int | None
    """Of this minute; None without a limit."""
    remaining_tokens: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """An admitted request; to be settled when it ends, however it ends."""

    ask: Ask
    lease_id: str
    admitted_at: float
    """Unix seconds, by the clock of the counts."""
    standing: Standing


class RateLimiter(Protocol):
    """Counts what callers ask for."""

    async def admit(self, ask: Ask) -> Grant:
        """Count a request in, in one step with the check.

        Raises:
            RateLimited: a limit is reached; nothing was counted. `retry_after_seconds` says when there is room.
        """
        ...

    async def settle(self, grant: Grant, *, num_tokens: int) -> None:
        """A request ended and took so many tokens. Never raises: an answer that is there must not fail for a count."""
        ...


def refusal(what: str, limit: int, *, retry_after_seconds: float) -> RateLimited:
    """The error of a limit that is reached.

    Args:
        what: the limit, as its field of `KeyLimits` is called.
        limit: its value.
        retry_after_seconds: when there will be room.
    """
    return RateLimited(
        f"The limit of {limit} {_NAMES[what]} is reached.",
        retry_after_seconds=retry_after_seconds,
        remedy="Send the request again after the time in Retry-After, or ask the operator for a higher limit.",
        place=what,
    )


_NAMES = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "tokens_per_day": "tokens a day",
    "max_concurrent": "requests at once",
}
