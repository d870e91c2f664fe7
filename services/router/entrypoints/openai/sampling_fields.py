"""What both completion routes share: OpenAI's sampling parameters, and vLLM's beside them.

A parameter that this server does not implement is accepted at the value that changes nothing and refused at any
other; nothing that would alter an answer is ignored in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, JsonValue

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.answer_forms import (
    ResponseFormat,
    StructuredOutputs,
    choice_grammar,
    json_schema_grammar,
    regex_grammar,
)
from services.router.entrypoints.openai.hilora_options import HiloraOptions
from services.router.entrypoints.openai.request_fields import UINT64, StopText, StrictRequest, Text
from services.router.request import Grammar, SamplingParams

UINT32_MAX = 2**32 - 1
MAX_CHOICES = 32
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_STOP_TOKENS = 256
_MAX_BIASES = 1024
_INT32 = 2**31

TokenId = Annotated[int, Field(ge=0, le=UINT32_MAX)]
"""A token of the base's tokenizer."""

_BiasedToken = Annotated[int, Field(ge=0, le=UINT32_MAX, strict=False)]
# Keys of JSON are texts.


class StreamOptions(StrictRequest):
    """OpenAI's `stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


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
    logit_bias: dict[_BiasedToken, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
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
    guided_json: dict[str, JsonValue] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
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
            InvalidInput: `invalid_parameter`, if more than one parameter says so.
        """
        wanted = {
            "response_format": self.response_format.grammar() if self.response_format else None,
            "structured_outputs": self.structured_outputs.grammar() if self.structured_outputs else None,
            # What vLLM called it before `structured_outputs`.
            "guided_json": None if self.guided_json is None else json_schema_grammar(self.guided_json),
            "guided_regex": None if self.guided_regex is None else regex_grammar(self.guided_regex),
            "guided_choice": None if self.guided_choice is None else choice_grammar(self.guided_choice),
        }
        given = {name: grammar for name, grammar in wanted.items() if grammar is not None}
        if len(given) > 1:
            raise InvalidInput(
                f"{' and '.join(given)} say what the answer must look like.",
                code="invalid_parameter",
                remedy="Send one of them.",
                place=list(given)[-1],
            )
        return next(iter(given.values()), None)

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
