"""What a client asks of the router, as frozen values that know neither JSON nor protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hilora.routing_plan import RoutingPlan
from services.router.routing_options import RoutingOptions


class ChatRole(StrEnum):
    """Who said a message of a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: ChatRole
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPrompt:
    """A text to be continued as it stands."""

    text: str

    @property
    def routing_text(self) -> str:
        """The text that adapters are chosen by: all of it."""
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the worker with the base's own chat template. At least one message."""

    messages: tuple[ChatMessage, ...]

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


Prompt = TextPrompt | ChatPrompt


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `None` leaves a value to the worker's default (worker.proto, SamplingParams)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    """In [0, 2^64)."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool | None = None


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


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkOrder:
    """What a worker is asked to do: a request with its plan."""

    request: GenerationRequest
    plan: RoutingPlan
