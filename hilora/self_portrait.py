"""What an adapter says when it is asked for nothing in particular: texts that stand for its task where nobody sent any.

The plan of a self-portrait is the same wherever it is made (served by a worker, measured in the lab), so that what was
measured is what runs. What the choices below cost in routing accuracy: `docs/experiments.md`, "Profiles without sample
texts". [ours]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

PORTRAIT_TEXTS = 20
"""Texts of a portrait; the m of the statistics."""

PORTRAIT_TEMPERATURE = 0.8
"""Below 1 an adapter's habits stand out; at 0 it would say one thing."""

PORTRAIT_TOKENS = 48
"""Longest text. Encoders weigh the beginning of a text, and a request's instruction stands there."""

NEUTRAL_OPENINGS = ("", "write", "make", "give", "list", "please", "for all", "put the", "the", "here is")
"""What texts begin with, in turn. The empty one leaves only the start token, where the base's tokenizer adds one; the
others are the beginnings of requests of any kind."""

_SPARE = 2
_MIN_WORDS = 2
_LONG_ENOUGH_TO_JUDGE = 6
_MAX_SHARE_OF_ONE_WORD = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PortraitPrompt:
    """One text to be generated."""

    opening: str
    seed: int

    def text(self, continuation: str) -> str:
        """The whole text: opening and what the adapter made of it."""
        return f"{self.opening} {continuation.strip()}".strip()


def portrait_prompts(openings: Sequence[str] = NEUTRAL_OPENINGS) -> tuple[PortraitPrompt, ...]:
    """What to generate for one portrait: more than is kept, since some of it will be junk. The same for every adapter,
    so that portraits differ by the adapters alone."""
    num_prompts = _SPARE * PORTRAIT_TEXTS
    return tuple(PortraitPrompt(opening=openings[idx % len(openings)], seed=idx) for idx in range(num_prompts))


def is_telling(text: str) -> bool:
    """Whether a generated text can say anything about a task: no fragment, and not one word again and again."""
    words = text.split()
    if len(words) < _MIN_WORDS or not any(char.isalnum() for char in text):
        return False
    most_frequent = Counter(words).most_common(1)[0][1]
    return len(words) < _LONG_ENOUGH_TO_JUDGE or most_frequent <= _MAX_SHARE_OF_ONE_WORD * len(words)


def portrait_texts(generated: Iterable[str]) -> tuple[str, ...]:
    """The first `PORTRAIT_TEXTS` telling texts, each once; fewer, or none, if the adapter says no more."""
    stripped = (" ".join(text.split()) for text in generated)
    return tuple(islice(dict.fromkeys(text for text in stripped if is_telling(text)), PORTRAIT_TEXTS))
