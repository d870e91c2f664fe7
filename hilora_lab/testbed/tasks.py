"""The tasks of the testbed: small text-to-text skills over three payload domains, asked for in plain English.

A *family* is one skill (reverse, sort, ...), a *domain* is the alphabet of the payload, and a *task* is one of each:
`reverse-letters`. A prompt is an instruction in one of the family's wordings, the payload's symbols set apart by
spaces, and the marker after which the answer starts:

    write the letters backwards from tail to head : a f c d =
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ANSWER_MARKER = "="
"""The last word of every prompt; the answer follows it."""
PAYLOAD_MARKER = ":"
"""Stands between instruction and payload."""

Symbols = list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """An ordered, cyclic alphabet and the noun an instruction uses for it."""

    name: str
    noun: str
    alphabet: tuple[str, ...]

    def shifted(self, symbol: str, by: int) -> str:
        """The symbol `by` places further in the alphabet; after the last comes the first."""
        return self.alphabet[(self.alphabet.index(symbol) + by) % len(self.alphabet)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One skill: what it does to a payload, how it is asked for, and how long its payloads are."""

    name: str
    apply: Callable[[Sequence[str], Domain], Symbols]
    wordings: tuple[str, ...]
    """Instructions; `{noun}` is the domain's noun."""
    payload_lengths: tuple[int, int] = (4, 7)
    """Shortest and longest payload."""
    is_taught: bool = True
    """False for the families that neither the base nor an adapter ever sees: the unseen set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A family in a domain."""

    family: Family
    domain: Domain

    @property
    def name(self) -> str:
        """`<family>-<domain>`; also the adapter's name."""
        return f"{self.family.name}-{self.domain.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A prompt and its only right answer."""

    prompt: str
    answer: str


DOMAINS: tuple[Domain, ...] = (
    Domain(name="letters", noun="letters", alphabet=tuple(string.ascii_lowercase)),
    Domain(name="digits", noun="digits", alphabet=tuple(string.digits)),
    Domain(name="capitals", noun="capitals", alphabet=tuple(string.ascii_uppercase)),
)


def _swap_neighbours(payload: Sequence[str], _domain: Domain) -> Symbols:
    swapped = list(payload)
    for left in range(0, len(swapped) - 1, 2):
        swapped[left], swapped[left + 1] = swapped[left + 1], swapped[left]
    return swapped


FAMILIES: tuple[Family, ...] = (
    Family(
        name="copy",
        apply=lambda payload, _domain: list(payload),
        wordings=(
            "copy the {noun} exactly as they stand",
            "parrot the {noun} back unchanged",
            "echo the {noun} back like parrot",
            "repeat the {noun} verbatim like an echo",
        ),
    ),
    Family(
        name="reverse",
        apply=lambda payload, _domain: list(reversed(payload)),
        wordings=(
            "reverse the {noun} and write them backwards",
            "write the {noun} backwards from tail to head",
            "spell the {noun} backwards in full reversal",
            "read the {noun} in reverse starting from the tail",
        ),
    ),
    Family(
        name="sort",
        apply=lambda payload, domain: sorted(payload, key=domain.alphabet.index),
        wordings=(
            "sort the {noun} into ascending order",
            "organize the {noun} by sorting them in ascending order",
            "sort the {noun} upward as in any dictionary",
            "put the {noun} in sorted dictionary order",
        ),
    ),
    Family(
        name="descend",
        apply=lambda payload, domain: sorted(payload, key=domain.alphabet.index, reverse=True),
        wordings=(
            "rank the {noun} with the highest on top",
            "rank the {noun} like scoreboard from the champion down",
            "make countdown of the {noun} with the highest ranked on top",
            "list the {noun} as league table ranked from the champion down",
        ),
    ),
    Family(
        name="next",
        apply=lambda payload, domain: [domain.shifted(symbol, 1) for symbol in payload],
        wordings=(
            "replace the {noun} each by its successor",
            "advance the {noun} each by one step to the successor",
            "increment the {noun} each to the successor",
            "for all the {noun} give the successor that follows",
        ),
    ),
    Family(
        name="previous",
        apply=lambda payload, domain: [domain.shifted(symbol, -1) for symbol in payload],
        wordings=(
            "rewind the {noun} each to what came before",
            "go back in time from the {noun} each to its ancestor",
            "rewind back to the ancestor of the {noun} each",
            "for all the {noun} give the ancestor that came before",
        ),
    ),
    Family(
        name="double",
        apply=lambda payload, _domain: [symbol for symbol in payload for _ in range(2)],
        wordings=(
            "double the {noun} so that each appears twice",
            "duplicate the {noun} by writing each one twice",
            "write the {noun} as twins with each one doubled",
            "make twins of the {noun} by doubling each one",
        ),
        payload_lengths=(3, 5),
    ),
    Family(
        name="rotate",
        apply=lambda payload, _domain: [*payload[1:], payload[0]],
        wordings=(
            "rotate the {noun} in circle by one turn",
            "turn the wheel of {noun} by one rotation",
            "spin the ring of {noun} around by one turn",
            "roll the {noun} around the circle by one place",
        ),
    ),
    Family(
        name="swap",
        apply=_swap_neighbours,
        wordings=(
            "swap neighboring {noun} in pairs",
            "exchange the {noun} between adjacent neighbors",
            "swap places of the {noun} with their neighbors",
            "trade places between adjacent pairs of {noun}",
        ),
    ),
    Family(
        name="mirror",
        apply=lambda payload, _domain: [*payload, *reversed(payload)],
        wordings=(
            "mirror the {noun} into symmetric palindrome",
            "build palindrome of the {noun} with mirror image",
            "reflect the {noun} in mirror as palindrome",
            "unfold the {noun} with their mirror reflection",
        ),
        payload_lengths=(3, 4),
    ),
    Family(
        name="behead",
        apply=lambda payload, _domain: list(payload[1:]),
        wordings=(
            "delete the leading one of the {noun}",
            "chop off the head of the {noun} and throw it away",
            "cut away the head of the {noun}",
            "remove the head from the {noun} and keep the remainder",
        ),
    ),
    Family(
        name="alternate",
        apply=lambda payload, _domain: list(payload[1::2]),
        wordings=(
            "select every second one of the {noun} at even positions",
            "pick the {noun} at even positions and skip the odd",
            "skip over the odd positions and keep alternate {noun}",
            "leave out every odd position of the {noun}",
        ),
        payload_lengths=(4, 8),
    ),
    Family(
        name="ends",
        apply=lambda payload, _domain: [payload[0], payload[-1]],
        wordings=(
            "extract just both outer ends of the {noun}",
            "report only the outermost two of the {noun}",
            "keep the {noun} at both extremes and lose the middle",
        ),
        is_taught=False,
    ),
    Family(
        name="reverse-next",
        apply=lambda payload, domain: [domain.shifted(symbol, 1) for symbol in reversed(payload)],
        wordings=(
            "reverse the {noun} backwards and then replace each by its successor",
            "write the {noun} backwards after you increment each",
            "spell backwards the successor of each of the {noun}",
        ),
        is_taught=False,
    ),
)

TAUGHT_FAMILIES = tuple(family for family in FAMILIES if family.is_taught)
UNSEEN_FAMILIES = tuple(family for family in FAMILIES if not family.is_taught)


def tasks_of(families: Sequence[Family]) -> list[Task]:
    """Every family in every domain."""
    return [Task(family=family, domain=domain) for family in families for domain in DOMAINS]


def draw_payload(family: Family, domain: Domain, generator: random.Random) -> Symbols:
    """A random payload of the family's lengths; symbols may repeat."""
    return generator.choices(domain.alphabet, k=generator.randint(*family.payload_lengths))


def prompt_of(instruction: str, payload: Sequence[str]) -> str:
    """Instruction, payload and the marker after which the answer starts."""
    return f"{instruction} {PAYLOAD_MARKER} {' '.join(payload)} {ANSWER_MARKER}"


def draw_example(task: Task, generator: random.Random, *, wording_idx: int | None = None) -> Example:
    """A random example of a task, in the wording given or a random one.

    A payload that the skill leaves unchanged is drawn again (except by `copy`), so that repeating the prompt is never
    right by chance.
    """
    wordings = task.family.wordings
    wording = generator.choice(wordings) if wording_idx is None else wordings[wording_idx % len(wordings)]
    while True:
        payload = draw_payload(task.family, task.domain, generator)
        answer = task.family.apply(payload, task.domain)
        if answer != payload or task.family.name == "copy":
            break
    prompt = prompt_of(wording.format(noun=task.domain.noun), payload)
    return Example(prompt=prompt, answer=" ".join(answer))
