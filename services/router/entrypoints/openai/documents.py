"""What the OpenAPI document says of our answers. Answers are made elsewhere; tests hold the two together."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorFields(_Document):
    """OpenAI's error object, with our `remedy`."""

    message: str
    """What was wrong, and what to do."""
    type: str
    param: str | None
    code: str
    """Stable: never changes once published."""
    remedy: str | None


class ErrorDocument(_Document):
    """Every answer that is no success."""

    error: ErrorFields


class UsageDocument(_Document):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class AdapterShare(_Document):
    """One adapter of a plan."""

    name: str
    adapter_id: str
    num_rocs: int
    lora_rank: int
    weight: float


class HiloraDocument(_Document):
    """Which adapters ran, and why."""

    adapters: list[AdapterShare]
    mode: str
    is_out_of_distribution: bool
    catalog_generation: int
    reason: str


class FunctionCallDocument(_Document):
    """A function and its arguments."""

    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCallDocument(_Document):
    """A call that the answer makes."""

    id: str
    type: Literal["function"]
    function: FunctionCallDocument


class MessageDocument(_Document):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCallDocument] = Field(default_factory=list[ToolCallDocument])


class ChatChoiceDocument(_Document):
    """One answer to a conversation."""

    index: int
    message: MessageDocument
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatDocument(_Document):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceDocument]
    usage: UsageDocument
    hilora: HiloraDocument


class CompletionChoiceDocument(_Document):
    """One continuation of a text."""

    index: int
    text: str
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length"]


class CompletionDocument(_Document):
    """Continuations of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceDocument]
    usage: UsageDocument
    hilora: HiloraDocument


class ModelDocument(_Document):
    """One value of `model`, with the fields that vLLM added for adapters."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None
    parent: str | None
    max_model_len: int | None


class ModelListDocument(_Document):
    """Every value of `model`."""

    object: Literal["list"]
    data: list[ModelDocument]


class EmbeddingDocument(_Document):
    """One embedding: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingListDocument(_Document):
    """Embeddings in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingDocument]
    usage: dict[str, int]


class TokensDocument(_Document):
    """A prompt as tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TextDocument(_Document):
    """Tokens as a text."""

    prompt: str


Responses = dict[int | str, dict[str, Any]]
"""FastAPI's `responses`."""

_ERRORS = {
    400: "The request is wrong; `param` says where.",
    401: "There is no valid key.",
    403: "The key does not open this.",
    404: "There is no such model, or no such route.",
    405: "The route knows no such method.",
    409: "The catalogue moved on in a way that this request cannot follow.",
    413: "The body is too long.",
    422: "The request cannot be met as it is.",
    429: "A limit is reached; `Retry-After` says when to come back.",
    500: "The server failed.",
    503: "A part of the server is away.",
    504: "The time is over.",
}
ERROR_RESPONSES: Responses = {status: {"model": ErrorDocument, "description": text} for status, text in _ERRORS.items()}
"""Of every route."""

_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
CHAT_RESPONSES: Responses = {
    200: {"model": ChatDocument, "description": "The answer; with `stream` its chunks.", "content": _STREAM}
}
COMPLETION_RESPONSES: Responses = {
    200: {"model": CompletionDocument, "description": "The answer; with `stream` its chunks.", "content": _STREAM}
}
