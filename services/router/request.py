"""What a client asks of the router, as frozen values that know neither JSON nor protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hilora.routing_plan import RoutingPlan
from services.router.routing_options import RoutingOptions


class ChatRole(StrEnum):
    """Who said a message of a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """The result of a call that the assistant made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call of a function that an assistant's message asks for."""

    call_id: str
    name: str
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: ChatRole
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's message calls."""
    tool_call_id: str = ""
    """Which call a tool's message answers."""
    name: str = ""
    """The speaker's name, or the tool's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPrompt:
    """A text to be continued as it stands."""

    text: str

    @property
    def routing_text(self) -> str:
        """The text that adapters are chosen by: all of it."""
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPrompt:
    """Tokens to be continued as they stand, with the text they stand for."""

    token_ids: tuple[int, ...]
    text: str

    @property
    def routing_text(self) -> str:
        """The text that adapters are chosen by: all of it."""
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the worker with the base's own chat template. At least one message."""

    messages: tuple[ChatMessage, ...]
    tools: str = ""
    """What the model may call: a JSON list of OpenAI's tool objects; empty for nothing."""
    continues_final_message: bool = False
    """Whether the last message, an assistant's, is to be continued instead of answered."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("a conversation has at least one message")

    @property
    def routing_text(self) -> str:
        """The text that adapters are chosen by: the last user message, or the last message where no user spoke."""
        for message in reversed(self.messages):
            if message.role is ChatRole.USER:
                return message.content
        return self.messages[-1].content


Prompt = TextPrompt | TokenPrompt | ChatPrompt


class GrammarKind(StrEnum):
    """How a grammar is written; see `Grammar` in worker.proto."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """What an answer must look like. The worker checks and compiles it."""

    kind: GrammarKind
    text: str = ""
    """The schema or the expression."""
    choices: tuple[str, ...] = ()
    """The texts to choose from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `None` leaves a value to the worker's default (worker.proto, SamplingParams)."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None
    """In [0, 2^64)."""
    n: int | None = None
    """Answers to the prompt."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: int | None = None
    """Likeliest tokens to be told with each token of the answer; `None` tells no log-probabilities at all."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None

    @property
    def num_choices(self) -> int:
        """Answers that will come."""
        return 1 if self.n is None else self.n


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One completion asked for."""

    request_id: str
    """Unique among the requests in flight."""
    prompt: Prompt
    sampling: SamplingParams = SamplingParams()
    options: RoutingOptions = field(default_factory=RoutingOptions)
    timeout_seconds: float | None = None
    """What is left of the client's own deadline; the router's setting bounds it either way."""
    priority: int = 0
    """Lower runs first."""
    explains_gating: bool = False
    """Whether the end tells which components acted; costs another reading of prompt and answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkOrder:
    """What a worker is asked to do: a request with its plan."""

    request: GenerationRequest
    plan: RoutingPlan
