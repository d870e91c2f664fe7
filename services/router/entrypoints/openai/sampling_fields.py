"""What both completion routes share: OpenAI's sampling parameters, and vLLM's beside them.

A parameter that this server does not implement is accepted at the value that changes nothing and refused at any
other; nothing that would alter an answer is ignored in silence.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.hilora_options import HiloraOptions
from services.router.entrypoints.openai.request_fields import UINT64, StopText, StrictRequest, Text
from services.router.request import Grammar, GrammarKind, SamplingParams

UINT32_MAX = 2**32 - 1
MAX_CHOICES = 32
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_STOP_TOKENS = 256
_MAX_BIASES = 1024
_INT32 = 2**31

TokenId = Annotated[int, Field(ge=0, le=UINT32_MAX)]
"""A token of the base's tokenizer."""


class StreamOptions(StrictRequest):
    """OpenAI's `stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


class JsonSchemaFormat(StrictRequest):
    """The schema of a `response_format`."""

    name: Text = Field(default="answer", max_length=256)
    description: Text | None = None
    strict: bool | None = None
    # `schema` is a method of pydantic's own.
    json_schema: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue], alias="schema")


class ResponseFormat(StrictRequest):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def grammar(self) -> Grammar | None:
        """What the answer must look like.

        Raises:
            InvalidInput: `missing_parameter`.
        """
        match self.type:
            case "text":
                return None
            case "json_object":
                return Grammar(kind=GrammarKind.JSON_OBJECT)
            case "json_schema":
                if self.json_schema is None:
                    raise InvalidInput(
                        "A response_format of type json_schema needs a json_schema.",
                        code="missing_parameter",
                        remedy='Send {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
                        place="response_format.json_schema",
                    )
                return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(self.json_schema.json_schema))


class StructuredOutputs(StrictRequest):
    """vLLM's `structured_outputs`: exactly one of them."""

    json_: dict[str, JsonValue] | Text | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: list[Text] | None = None

    def grammar(self) -> Grammar:
        """What the answer must look like.

        Raises:
            InvalidInput: `invalid_parameter`, unless exactly one is given.
        """
        given: list[Grammar] = []
        if self.json_ is not None:
            text = self.json_ if isinstance(self.json_, str) else json.dumps(self.json_)
            given.append(Grammar(kind=GrammarKind.JSON_SCHEMA, text=text))
        if self.json_object:
            given.append(Grammar(kind=GrammarKind.JSON_OBJECT))
        if self.regex is not None:
            given.append(Grammar(kind=GrammarKind.REGEX, text=self.regex))
        if self.choice is not None:
            given.append(Grammar(kind=GrammarKind.CHOICE, choices=tuple(self.choice)))
        if len(given) != 1:
            raise InvalidInput(
                f"structured_outputs names {len(given)} forms of an answer.",
                code="invalid_parameter",
                remedy="Give exactly one of json, json_object, regex and choice.",
                place="structured_outputs",
            )
        return given[0]


class SamplingFields(StrictRequest):
    """Fields of `POST /v1/completions` and `POST /v1/chat/completions`."""

    model: Text = Field(min_length=1, max_length=512)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=UINT64)
    stop: StopText | Annotated[list[StopText], Field(max_length=_MAX_STOPS)] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=_MAX_BIASES
    )
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    hilora: HiloraOptions = Field(default_factory=HiloraOptions)

    # vLLM's own.
    top_k: int | None = Field(default=None, ge=-1, le=UINT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    min_tokens: int | None = Field(default=None, ge=0, le=UINT32_MAX)
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=_MAX_STOP_TOKENS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int = Field(default=0, ge=-_INT32, lt=_INT32)

    # They describe the request or the customer and change no token.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def grammar(self) -> Grammar | None:
        """What the answer must look like.

        Raises:
            InvalidInput: `invalid_parameter`, if `response_format` and `structured_outputs` both say so.
        """
        wanted = self.response_format.grammar() if self.response_format else None
        if self.structured_outputs is None:
            return wanted
        if wanted is not None:
            raise InvalidInput(
                "response_format and structured_outputs both say what the answer must look like.",
                code="invalid_parameter",
                remedy="Send one of them.",
                place="structured_outputs",
            )
        return self.structured_outputs.grammar()

    def sampling_params(
        self, *, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None
    ) -> SamplingParams:
        """The sampling parameters in the router's own terms."""
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            # vLLM's older way to say "no limit".
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(self.logit_bias or {}),
            # OpenAI's seed is signed, the worker's is not: the same number modulo 2^64.
            seed=None if self.seed is None else self.seed % UINT64,
            n=self.n,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs,
            grammar=grammar,
        )


def unsupported(parameter: str, remedy: str) -> InvalidInput:
    """The refusal of what this server would have to ignore."""
    return InvalidInput(
        f"The parameter {parameter!r} is not supported with this value.",
        code="unsupported_parameter",
        remedy=remedy,
        place=parameter,
    )


def refuse_unsupported(body: StrictRequest, remedies: dict[str, tuple[tuple[object, ...], str]]) -> None:
    """Refuse parameters at values that would have to be ignored.

    Args:
        body: what was asked.
        remedies: by parameter the values besides null at which it changes nothing, and what to do instead.

    Raises:
        InvalidInput: `unsupported_parameter`, with the parameter as its place.
    """
    for name, (neutral, remedy) in remedies.items():
        value: Any = getattr(body, name)
        if value is not None and value not in neutral:
            raise unsupported(name, remedy)


LEAVE_OUT: Final = "Leave it out."
"""What to do with a parameter that has no counterpart here."""
