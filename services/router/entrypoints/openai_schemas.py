"""Requests in OpenAI's shape, with our one extension object `hilora`.

A parameter that this server does not implement is accepted at the value that changes nothing and refused at any
other; nothing that would alter an answer is ignored in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from hilora.errors import InvalidInput
from services.router.entrypoints.hilora_options import HiloraOptions
from services.router.entrypoints.request_fields import UINT64, StopText, StrictRequest, Text
from services.router.request import ChatMessage, ChatPrompt, ChatRole, SamplingParams, TextPrompt

_UINT32_MAX = 2**32 - 1
_DEFAULT_COMPLETION_TOKENS = 16
_MAX_STOPS = 16


class StreamOptions(StrictRequest):
    """OpenAI's `stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _GenerationBody(StrictRequest):
    """What both completion routes share."""

    model: Text = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(default=None, ge=1, le=_UINT32_MAX)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=UINT64)
    stop: StopText | Annotated[list[StopText], Field(max_length=_MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    hilora: HiloraOptions = Field(default_factory=HiloraOptions)

    # They describe the request or the customer and change no token.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    # Not implemented; see `refuse_unsupported`.
    n: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None

    def sampling_params(self, *, max_tokens: int | None) -> SamplingParams:
        """The sampling parameters in the router's own terms."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            # OpenAI's seed is signed, the worker's is not: the same number modulo 2^64.
            seed=None if self.seed is None else self.seed % UINT64,
            stop=stop,
        )

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(_GenerationBody):
    """`POST /v1/completions`."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    def text_prompt(self) -> TextPrompt:
        """The one text to be continued.

        Raises:
            InvalidInput: `unsupported_parameter`, for several prompts or for token ids.
        """
        match self.prompt:
            case str() as text:
                return TextPrompt(text=text)
            case [str() as text]:
                return TextPrompt(text=text)
            case _:
                raise _unsupported("prompt", "Send one text per request: adapters are chosen by its words.")

    def sampling(self) -> SamplingParams:
        """With OpenAI's default of 16 tokens."""
        return self.sampling_params(max_tokens=self.max_tokens or _DEFAULT_COMPLETION_TOKENS)


class TextPart(StrictRequest):
    """One text part of a message's content."""

    type: Literal["text"]
    text: Text


class MessageBody(StrictRequest):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    # What a client sends back of an earlier answer; only the text can be used.
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def chat_message(self) -> ChatMessage:
        """The message in the router's own terms; parts are joined by line breaks."""
        role = ChatRole.SYSTEM if self.role == "developer" else ChatRole(self.role)
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return ChatMessage(role=role, content=content)


class ChatBody(_GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[MessageBody] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_UINT32_MAX)
    parallel_tool_calls: Any = None
    prediction: Any = None

    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def chat_prompt(self) -> ChatPrompt:
        """The conversation in the router's own terms."""
        return ChatPrompt(messages=tuple(message.chat_message() for message in self.messages))

    def sampling(self, *, max_model_len: int | None) -> SamplingParams:
        """Without a limit of the client's the answer may fill the context; the worker stops it there."""
        return self.sampling_params(max_tokens=self.max_completion_tokens or self.max_tokens or max_model_len)


class RouteBody(StrictRequest):
    """`POST /v1/route`: exactly one of `text`, `prompt` and `messages`."""

    text: Text | None = None
    prompt: Text | None = None
    messages: list[MessageBody] | None = Field(default=None, min_length=1, max_length=4096)
    model: Text = Field(default="auto", max_length=512)
    hilora: HiloraOptions = Field(default_factory=HiloraOptions)

    def routing_text(self) -> str:
        """The text to decide by.

        Raises:
            InvalidInput: `invalid_input`, unless exactly one of the three is given.
        """
        given = [value for value in (self.text, self.prompt, self.messages) if value is not None]
        if len(given) != 1:
            raise InvalidInput(
                f"{len(given)} of text, prompt and messages are given.", remedy="Give exactly one.", place="text"
            )
        if self.messages is not None:
            return ChatPrompt(messages=tuple(message.chat_message() for message in self.messages)).routing_text
        return str(given[0])


# Values at which a parameter changes nothing, besides null.
_NEUTRAL_VALUES: Final[dict[str, tuple[object, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


def refuse_unsupported(body: CompletionBody | ChatBody) -> None:
    """Refuse what this server would have to ignore.

    Raises:
        InvalidInput: `unsupported_parameter`, with the parameter as its place.
    """
    for name, neutral in _NEUTRAL_VALUES.items():
        value = getattr(body, name, None)
        # On the older route `logprobs` counts alternatives: there even 0 asks for log-probabilities.
        is_count = name == "logprobs" and isinstance(body, CompletionBody)
        if value is not None and (is_count or value not in neutral):
            raise _unsupported(name, "Leave it out.")


def _unsupported(parameter: str, remedy: str) -> InvalidInput:
    return InvalidInput(
        f"The parameter {parameter!r} is not supported with this value.",
        code="unsupported_parameter",
        remedy=remedy,
        place=parameter,
    )
