"""What an engine tells a request's caller, in order: one `Started`, any number of `TextDelta`, one terminal event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hilora.errors import HiloraError
from hilora.routing_plan import RocBudget
from services.worker.engine.sampling.logprobs import PositionLogprobs
from services.worker.lora.gating.gating_counts import ModuleGating


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words."""

    STOP = "stop"
    """End-of-sequence token, stop token or stop text, or the grammar is complete."""
    LENGTH = "length"
    """`max_tokens`, or the model's context is full."""
    ABORT = "abort"
    """Cancelled by its caller or by a shutdown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The request runs: its ROCs are resident and its prompt is being read."""

    num_prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """More of the answer, whole characters only."""

    text: str
    token_ids: tuple[int, ...]
    """Tokens since the last delta."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One for each of the tokens, if they were asked for."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """One for each token of the prompt but the first, with the first delta, if they were asked for."""
    choice_idx: int = 0
    """Which of the `n` answers this belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The request's regular end, abort included."""

    finish_reason: FinishReason
    stop_reason: str | int | None = None
    """The stop text or the stop token that was met; None for end-of-sequence and for a complete grammar."""
    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0
    """Leading tokens of the prompt that were in the prefix cache."""
    budgets_used: tuple[RocBudget, ...]
    """Adapters whose ROCs ran."""
    ttft_seconds: float
    """From submission to the first token; 0 if there was none."""
    e2e_latency_seconds: float
    choice_idx: int = 0
    """Which of the `n` answers ended."""
    gating: tuple[ModuleGating, ...] = ()
    """Which ROCs acted, if it was asked for."""
    num_gated_tokens: int = 0
    """Tokens that `gating` counts over: all that the model read, which are prompt and answer without its last token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The request's irregular end; no other request was affected."""

    error: HiloraError


EngineEvent = Started | TextDelta | Finished | Failed
EventSink = Callable[[EngineEvent], None]
"""Called on the engine's thread; must return at once."""
