"""Comparing variants so that a noisy machine favours none: they run in turns, and ratios are taken turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")
"""What a turn measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Middle and spread of some values."""

    median: float
    min: float
    max: float
    n: int

    def as_json(self) -> dict[str, float | int]:
        """As it stands in the report."""
        return asdict(self)


def summarise(values: Sequence[float]) -> Summary:
    """Median, least, largest and count.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    return Summary(median=median(values), min=min(values), max=max(values), n=len(values))


def take_turns(
    variants: Mapping[str, Callable[[int], T]],
    *,
    num_rounds: int,
    num_warmups: int = 1,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[T]]:
    """Run every variant once a round.

    Args:
        variants: by name; called with the round's number, they return what they measured.
        num_rounds: rounds that count.
        num_warmups: rounds before them that do not; they have negative numbers.
        on_round: told each round that counts when it is done.

    Returns:
        What each variant measured, by round. Every second round goes through the variants in reverse order, so that
        none always follows the same other one.
    """
    values: dict[str, list[T]] = {name: [] for name in variants}
    for round_idx in range(-num_warmups, num_rounds):
        names = list(variants) if round_idx % 2 == 0 else list(variants)[::-1]
        for name in names:
            value = variants[name](round_idx)
            if round_idx >= 0:
                values[name].append(value)
        if round_idx >= 0 and on_round is not None:
            on_round(round_idx)
    return values


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [own / other for own, other in zip(ours, theirs, strict=True)]
