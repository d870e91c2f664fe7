"""`POST /v1/completions` as it is asked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from hilora.errors import InvalidInput
from services.router.entrypoints.openai.request_fields import Text
from services.router.entrypoints.openai.sampling_fields import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    UINT32_MAX,
    SamplingFields,
    TokenId,
    refuse_unsupported,
    unsupported,
)
from services.router.request import SamplingParams

MAX_PROMPTS = 128
"""Prompts of one request; each of them takes its own way to a worker."""
_DEFAULT_TOKENS = 16
_UNSUPPORTED: dict[str, tuple[tuple[object, ...], str]] = {
    "suffix": (("",), "Put what comes after the gap into the prompt, in the way that the base was trained for."),
}

TokenIds = Annotated[list[TokenId], Field(min_length=1)]
"""A prompt that is tokenised already."""


class CompletionBody(SamplingFields):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: int | None = Field(default=None, ge=0, le=UINT32_MAX)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    suffix: Any = None

    def check(self) -> None:
        """Refuse what would have to be ignored.

        Raises:
            InvalidInput: `unsupported_parameter`, or `invalid_parameter`.
        """
        refuse_unsupported(self, _UNSUPPORTED)
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", "Leave it out: answers are not ranked. Ask for n of them and choose.")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidInput(
                "max_tokens is 0, and nothing else is asked for.",
                code="invalid_parameter",
                remedy="Ask for at least 1, or set echo to get the prompt back with its log-probabilities.",
                place="max_tokens",
            )
        if self.n and self.n * len(self.prompts()) > MAX_PROMPTS:
            raise InvalidInput(
                f"{len(self.prompts())} prompts with {self.n} answers each are more than {MAX_PROMPTS}.",
                code="invalid_parameter",
                remedy="Send them in several requests.",
                place="n",
            )

    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt, as a text or as token ids."""
        match self.prompt:
            case str() as text:
                return [text]
            case [int(), *_] as token_ids:
                return [tuple(token_ids)]
            case many:
                return [
                    prompt if isinstance(prompt, str) else tuple(prompt)
                    for prompt in many
                    if not isinstance(prompt, int)
                ]

    def sampling(self) -> SamplingParams:
        """With OpenAI's default of 16 tokens. Nothing runs without a token: 0, for an echo alone, asks for one."""
        max_tokens = _DEFAULT_TOKENS if self.max_tokens is None else max(self.max_tokens, 1)
        return self.sampling_params(max_tokens=max_tokens, logprobs=self.logprobs, grammar=self.grammar())

    @property
    def is_echo_alone(self) -> bool:
        """Whether the prompt is asked back and nothing after it."""
        return self.max_tokens == 0
