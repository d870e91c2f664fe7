"""What is known of a generation when it has ended: figures, traces and the route log are made of this one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.router.answer import RouteResult
from services.router.request import GenerationRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRecord:
    """One generation, whatever its end."""

    request: GenerationRequest
    started_at: float
    """Unix seconds when it was asked for."""
    seconds: float
    """Until its end."""
    outcome: str
    """`ok`, `refused` (the client's fault), `exhausted` (a limit), `failed` or `aborted`."""
    error_code: str | None = None
    """Of the error that ended it."""
    route: RouteResult | None = None
    """None if no worker admitted it."""
    ttft_seconds: float | None = None
    """Until the first text; None if there was none."""
    inter_token_seconds: float | None = None
    """Mean time between the tokens after the first; None with fewer than two."""
    text_gaps_seconds: tuple[float, ...] = ()
    """Each wait between two pieces of text of one answer."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    """Of all answers together."""


GenerationObserver = Callable[[GenerationRecord], None]
"""Called once with each record; must neither block nor raise."""
