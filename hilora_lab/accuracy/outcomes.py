"""What came of asking a strategy every line of a setting, and how sure the shares are.

Lines of one task are not independent: intervals come from drawing *tasks* with replacement, the same draws for every
strategy, so that differences are paired.

Shapes: N lines, T tasks, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hilora_lab.testbed.folder import TaskLine

NUM_RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """One strategy in one setting, line by line."""

    lines: tuple[TaskLine, ...]
    is_right: tuple[bool, ...]
    chosen: tuple[str, ...]
    """The adapter of largest weight; empty for the base alone."""
    num_candidates: tuple[int, ...]
    num_rocs: tuple[int, ...]
    """ROCs that a token may switch on."""
    is_unexplained: tuple[bool, ...]
    """Whether the decision said that no adapter explains the text."""
    decide_seconds: tuple[float, ...]
    forward_seconds: float
    """Of all lines together, in the engine."""

    @property
    def exact_match(self) -> float:
        """Share of lines answered exactly."""
        return sum(self.is_right) / len(self.is_right)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """In the order of their lines."""
        return tuple(dict.fromkeys(line.task for line in self.lines))

    @cached_property
    def right_by_task(self) -> NDArray[np.float64]:
        """Right answers by task, `[T]`."""
        counts = dict.fromkeys(self.tasks, 0)
        for line, is_right in zip(self.lines, self.is_right, strict=True):
            counts[line.task] += is_right
        return np.array(list(counts.values()), dtype=np.float64)

    @cached_property
    def asked_by_task(self) -> NDArray[np.float64]:
        """Lines by task, `[T]`."""
        counts = dict.fromkeys(self.tasks, 0)
        for line in self.lines:
            counts[line.task] += 1
        return np.array(list(counts.values()), dtype=np.float64)


def resampled(outcomes: Outcomes, *, seed: int) -> NDArray[np.float64]:
    """Exact match of each resample, `[R]`; the draws depend on seed and number of tasks alone."""
    num_tasks = len(outcomes.tasks)
    drawn_RT = np.random.default_rng(seed).integers(num_tasks, size=(NUM_RESAMPLES, num_tasks))
    return outcomes.right_by_task[drawn_RT].sum(axis=1) / outcomes.asked_by_task[drawn_RT].sum(axis=1)


def interval(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values_R, INTERVAL)
    return float(low), float(high)


def difference(first: Outcomes, second: Outcomes, *, seed: int) -> tuple[float, tuple[float, float]]:
    """Exact match of the first minus that of the second over the same lines, with its paired interval."""
    if first.tasks != second.tasks:
        raise ValueError("only outcomes over the same tasks can be paired")
    gaps_R = resampled(first, seed=seed) - resampled(second, seed=seed)
    return first.exact_match - second.exact_match, interval(gaps_R)


def shares_by(outcomes: Outcomes, field: str) -> dict[str, float]:
    """Exact match of the lines by one of their fields, lines without it left out."""
    groups: dict[str, list[bool]] = {}
    for line, is_right in zip(outcomes.lines, outcomes.is_right, strict=True):
        if value := str(getattr(line, field)):
            groups.setdefault(value, []).append(is_right)
    return {value: sum(right) / len(right) for value, right in groups.items()}


def choices(outcomes: Outcomes) -> dict[str, dict[str, int]]:
    """How often which adapter came first, by task; the base alone under an empty name."""
    found: dict[str, dict[str, int]] = {task: {} for task in outcomes.tasks}
    for line, name in zip(outcomes.lines, outcomes.chosen, strict=True):
        found[line.task][name] = found[line.task].get(name, 0) + 1
    return found
