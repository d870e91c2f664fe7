"""How a request chooses its tokens and when it ends, checked on construction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hilora.errors import InvalidSamplingParams

MAX_STOP_TEXTS = 16
"""Stop texts of one request; more would be searched for at every token."""
MAX_STOP_LENGTH = 256
"""Characters of one stop text: as many may be held back from the stream."""
MAX_STOP_TOKEN_IDS = 256
"""Stop tokens of one request."""
MAX_LOGIT_BIASES = 1024
"""Biased tokens of one request; they are added at every token."""
MAX_LOGPROBS = 20
"""Likeliest tokens that are told with each token, as OpenAI limits them."""
MAX_CHOICES = 32
"""Answers to one prompt; each takes a place in the batch."""
MAX_GRAMMAR_LENGTH = 65_536
"""Characters of a schema, of a regular expression, or of all choices together."""
MAX_GRAMMAR_CHOICES = 1024
"""Texts a grammar may let choose from."""
_MAX_SEED = 2**64 - 1


class GrammarKind(StrEnum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    """A JSON schema, as text."""
    JSON_OBJECT = "json_object"
    """Any JSON object."""
    REGEX = "regex"
    """A regular expression for the whole answer, without look-around or back references."""
    CHOICE = "choice"
    """One of some texts, literally."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """What an answer must look like.

    Raises:
        InvalidSamplingParams: empty or too large; `place` names the field.
    """

    kind: GrammarKind
    text: str = ""
    """The schema or the expression."""
    choices: tuple[str, ...] = ()
    """The texts to choose from."""

    def __post_init__(self) -> None:
        if self.kind is GrammarKind.CHOICE:
            _require(
                1 <= len(self.choices) <= MAX_GRAMMAR_CHOICES,
                "grammar.choice",
                f"{len(self.choices)} texts",
                f"1 to {MAX_GRAMMAR_CHOICES} texts",
            )
            _require(all(self.choices), "grammar.choice", "a list with an empty text", "texts that are not empty")
        elif self.kind is not GrammarKind.JSON_OBJECT:
            _require(bool(self.text), f"grammar.{self.kind}", "empty", "a text")
        length = len(self.text) + sum(map(len, self.choices))
        _require(
            length <= MAX_GRAMMAR_LENGTH,
            f"grammar.{self.kind}",
            f"{length} characters long",
            f"at most {MAX_GRAMMAR_LENGTH} characters",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, with the meaning that vLLM and OpenAI give them.

    How the next token comes about, step by step:

    1. Log-probabilities, if asked for, are those of the model itself: log-softmax of its logits before any step below.
       So they compare between requests, and a forbidden token does not make a forced one look certain.
    2. The grammar, `min_tokens` and `ignore_eos` under a grammar forbid tokens.
    3. `logit_bias` is added.
    4. `repetition_penalty` divides positive and multiplies negative logits of tokens that prompt or answer hold; then
       `frequency_penalty` times the number of occurrences in the answer, and `presence_penalty` once, are taken off.
    5. At temperature 0 the likeliest token is taken (of equals, any fixed one); otherwise logits are divided by it.
    6. `min_p`, `top_k`, `top_p` cut the tail, in this order, each on what the one before left.
    7. One draw with the request's own generator.

    Raises:
        InvalidSamplingParams: a value has the wrong type or is outside its range; `place` names the field.
    """

    max_tokens: int = 16
    """Completion tokens at most."""
    min_tokens: int = 0
    """End-of-sequence, stop tokens and stop texts do not end the answer before so many tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens that holds this mass, in (0, 1]."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 is no limit."""
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest token's probability, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that the prompt or the answer holds already; in [0.01, 100]."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the answer holds, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Taken off the logits for each occurrence in the answer, in [-2, 2]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to tokens' logits, by token id, in [-100, 100]."""
    seed: int | None = None
    """Makes the choice repeatable whatever else is in the batch; random if None."""
    n: int = 1
    """Answers to the prompt. The engine makes one; `Generation` asks it n times, with seeds that count up."""
    best_of: int | None = None
    """Not offered: None or equal to `n`."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; it stops before them."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer."""
    include_stop_str_in_output: bool = False
    """Whether the stop text, or the text of the stop token, stays part of the answer."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token."""
    skip_special_tokens: bool = True
    """Whether special tokens have no text."""
    logprobs: int | None = None
    """Log-probability of each token, and of so many likeliest ones; None is none at all."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt, from the second one on."""
    grammar: Grammar | None = None
    """What the answer must look like."""

    def __post_init__(self) -> None:
        self._check_types()
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(
            0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "at least 0 and at most max_tokens"
        )
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "a finite number of at least 0",
        )
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "at least 0 and at most 1")
        _require(
            # Beyond, a logit may leave what float32 holds.
            0.01 <= self.repetition_penalty <= 100,
            "repetition_penalty",
            self.repetition_penalty,
            "at least 0.01 and at most 100",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "at least -2 and at most 2")
        if self.seed is not None:
            _require(0 <= self.seed <= _MAX_SEED, "seed", self.seed, "an unsigned 64-bit integer")
        _require(1 <= self.n <= MAX_CHOICES, "n", self.n, f"1 to {MAX_CHOICES}")
        _require(
            self.best_of is None or self.best_of == self.n,
            "best_of",
            self.best_of,
            "nothing, and n to the number of answers wanted: answers are not ranked here",
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"0 to {MAX_LOGPROBS}")
        self._check_stops()
        self._check_logit_bias()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def is_penalising(self) -> bool:
        """Whether what was said before changes a token's chance."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_token_ids(self, vocab_size: int) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            InvalidSamplingParams: `place` names the field.
        """
        for name, token_ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", tuple(self.logit_bias))):
            largest = max(token_ids, default=0)
            _require(largest < vocab_size, name, f"about token {largest}", f"token ids below {vocab_size}")

    def _check_types(self) -> None:
        for name in ("max_tokens", "min_tokens", "top_k", "n"):
            _require(_is_whole(getattr(self, name)), name, repr(getattr(self, name)), "an integer")
        for name in ("seed", "best_of", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or _is_whole(value), name, repr(value), "an integer")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            _require(_is_number(getattr(self, name)), name, repr(getattr(self, name)), "a number")

    def _check_stops(self) -> None:
        _require(len(self.stop) <= MAX_STOP_TEXTS, "stop", f"{len(self.stop)} texts", f"at most {MAX_STOP_TEXTS} texts")
        for text in self.stop:
            _require(
                0 < len(text) <= MAX_STOP_LENGTH,
                "stop",
                f"a text of {len(text)} characters",
                f"texts of 1 to {MAX_STOP_LENGTH} characters",
            )
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"{len(self.stop_token_ids)} tokens",
            f"at most {MAX_STOP_TOKEN_IDS} tokens",
        )
        _require(_are_token_ids(self.stop_token_ids), "stop_token_ids", self.stop_token_ids, "token ids")

    def _check_logit_bias(self) -> None:
        num_biases = len(self.logit_bias)
        _require(
            num_biases <= MAX_LOGIT_BIASES, "logit_bias", f"{num_biases} tokens", f"at most {MAX_LOGIT_BIASES} tokens"
        )
        _require(_are_token_ids(tuple(self.logit_bias)), "logit_bias", tuple(self.logit_bias), "token ids")
        for token_id, bias in self.logit_bias.items():
            _require(
                _is_number(bias) and -100 <= bias <= 100,
                "logit_bias",
                f"{bias} for token {token_id}",
                "numbers from -100 to 100",
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_token_ids(token_ids: Sequence[object]) -> bool:
    return all(isinstance(token_id, int) and _is_whole(token_id) and token_id >= 0 for token_id in token_ids)


def _require(is_valid: bool, field_name: str, value: object, expected: str) -> None:  # noqa: FBT001
    if not is_valid:
        raise InvalidSamplingParams(
            f"{field_name} is {value}.", remedy=f"Set {field_name} to {expected}.", place=field_name
        )
