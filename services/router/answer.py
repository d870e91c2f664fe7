"""What the router answers: the decision, then the events of one generation in their order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hilora.routing_plan import RocBudget, RoutingDecision
from services.router.plan_record import SessionRecord


class SessionVerdict(StrEnum):
    """What became of a session's plan."""

    NEW = "new"
    """The session had none."""
    KEPT = "kept"
    TOPIC_MOVED = "topic_moved"
    """Another adapter explains the text, and the plan's do not."""
    ADAPTER_GONE = "adapter_gone"
    """One of its adapter versions cannot be chosen any more."""
    OPTIONS_CHANGED = "options_changed"
    """The client wants adapters chosen in another way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionStanding:
    """Where a session stands with one turn's plan."""

    verdict: SessionVerdict
    reason: str
    """One sentence for a person."""
    after: SessionRecord
    """What is to be remembered once the turn was served."""
    id_key: str | None
    """Where, for a session that has an id; None for one that is known by its conversation."""

    @property
    def is_sticky(self) -> bool:
        """Whether an earlier plan was kept."""
        return self.verdict is SessionVerdict.KEPT


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
    strategy: str | None = None
    """By which strategy the plan was chosen; None where the client chose by itself."""
    plan_id: str = ""
    """By which the plan can be asked for again."""
    session: SessionStanding | None = None
    """None for a request without a session."""


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
class TokenLogprob:
    """A token and its probability under the model."""

    token_id: int
    logprob: float
    """Natural logarithm."""
    token_bytes: bytes
    """What the token adds to a text; need not be whole characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionLogprobs:
    """What the model thought at one position."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens, likeliest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """More of an answer: whole characters."""

    text: str
    token_ids: tuple[int, ...]
    choice_idx: int = 0
    """Which of the answers this belongs to."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One for each of the tokens, if they were asked for."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """One for each token of the prompt but the first, with the first delta of the first answer, if asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterGating:
    """How often an adapter's components acted in one module."""

    adapter_id: str
    num_tokens_fired: tuple[int, ...]
    """For each of its components there, the tokens at which it acted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleGating:
    """Which components of a module acted."""

    module_path: str
    adapters: tuple[AdapterGating, ...]
    """In the plan's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFinished:
    """The end of an answer."""

    finish_reason: FinishReason
    num_prompt_tokens: int
    num_completion_tokens: int
    budgets_used: tuple[RocBudget, ...]
    """Adapters whose rank-one components really ran, as the worker reports them."""
    ttft_seconds: float
    """Seconds from the worker's receipt to its first token."""
    e2e_latency_seconds: float
    choice_idx: int = 0
    """Which of the answers ended."""
    num_cached_tokens: int = 0
    """Leading tokens of the prompt that were in the worker's prefix cache."""
    stop_reason: str | int | None = None
    """The stop text or stop token that ended the answer, where one did."""
    gating: tuple[ModuleGating, ...] = ()
    """Which components acted, if that was asked."""
    num_gated_tokens: int = 0
    """Tokens that `gating` counts over."""


WorkerEvent = GenerationStarted | TextDelta | GenerationFinished
"""A worker's stream: one `GenerationStarted`, any number of `TextDelta`, one `GenerationFinished` for each answer."""

GenerationEvent = RouteResult | WorkerEvent
"""The router's stream: one `RouteResult`, then the worker's events."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletedChoice:
    """One whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finished: GenerationFinished
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletedGeneration:
    """All answers to a prompt, by their index."""

    route: RouteResult
    choices: tuple[CompletedChoice, ...]

    @property
    def budgets_used(self) -> tuple[RocBudget, ...]:
        """Adapters whose rank-one components really ran: the same for every answer, for all follow one plan."""
        return self.choices[0].finished.budgets_used


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedPrompt:
    """A prompt as tokens of the base."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """As the tokenizer spells them."""
    max_model_len: int
    """Tokens of the longest sequence."""
