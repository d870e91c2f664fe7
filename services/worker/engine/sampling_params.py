"""How a request chooses its next token, checked on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hilora.errors import InvalidSamplingParams

MAX_STOP_TEXTS = 16
"""Stop texts of one request; more would be searched for at every token."""
MAX_STOP_LENGTH = 256
"""Characters of one stop text: as many may be held back from the stream."""
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request.

    Raises:
        InvalidSamplingParams: a value is outside its range; `place` names the field.
    """

    max_tokens: int = 16
    """Completion tokens at most."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens that holds this mass, in (0, 1]."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 is no limit."""
    seed: int | None = None
    """Makes the choice repeatable whatever else is in the batch; random if None."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; it stops before them."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "a finite number of at least 0",
        )
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0")
        if self.seed is not None:
            _require(0 <= self.seed <= _MAX_SEED, "seed", self.seed, "an unsigned 64-bit integer")
        _require(len(self.stop) <= MAX_STOP_TEXTS, "stop", f"{len(self.stop)} texts", f"at most {MAX_STOP_TEXTS} texts")
        for text in self.stop:
            _require(
                0 < len(text) <= MAX_STOP_LENGTH,
                "stop",
                f"a text of {len(text)} characters",
                f"texts of 1 to {MAX_STOP_LENGTH} characters",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def _require(is_valid: bool, field: str, value: object, expected: str) -> None:  # noqa: FBT001
    if not is_valid:
        raise InvalidSamplingParams(f"{field} is {value}.", remedy=f"Set {field} to {expected}.", place=field)
