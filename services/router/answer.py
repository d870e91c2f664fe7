"""What the router answers: the decision, then the events of one generation in their order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hilora.routing_plan import RocBudget, RoutingDecision


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteResult:
    """A routing decision and what it took."""

    decision: RoutingDecision
    catalog_generation: int
    """The catalogue the decision was made from."""
    encoder_id: str
    encode_seconds: float
    """0 where the client named the model and nothing had to be embedded."""
    decide_seconds: float


class FinishReason(StrEnum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    """End-of-sequence token or a stop text."""
    LENGTH = "length"
    """`max_tokens`, or the context is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationStarted:
    """A worker admitted the request."""

    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """More of the answer: whole characters."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFinished:
    """The end of the answer."""

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_completion_tokens: int
    budgets_used: tuple[RocBudget, ...]
    """Adapters whose rank-one components really ran, as the worker reports them."""
    ttft_seconds: float
    """Seconds from the worker's receipt to its first token."""
    e2e_latency_seconds: float


WorkerEvent = GenerationStarted | TextDelta | GenerationFinished
"""A worker's stream: one `GenerationStarted`, any number of `TextDelta`, one `GenerationFinished`."""

GenerationEvent = RouteResult | WorkerEvent
"""The router's stream: one `RouteResult`, then the worker's events."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletedGeneration:
    """A whole answer."""

    route: RouteResult
    text: str
    finished: GenerationFinished
