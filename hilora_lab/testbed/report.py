"""What a testbed scores: the base, each task's own adapter, and its siblings (same family, other domain).

The own adapter is the ceiling of routing with the adapter present; a sibling is what routing can still find when the
own one is removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from hilora_lab.testbed.folder import Split, TaskLine, Testbed


class ScoresAdapters(Protocol):
    """A loaded pool that answers lines with one adapter, or with none."""

    def answered(self, adapter_name: str | None, lines: Sequence[TaskLine]) -> list[bool]:
        """For each line whether it is answered exactly."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Exact match of one task's lines; `None` where there is no such adapter."""

    task: str
    family: str
    domain: str
    num_prompts: int
    base: float
    own_adapter: float | None
    siblings: float | None
    """Mean over the adapters of the same family."""


def score_tasks(
    testbed: Testbed, pool: ScoresAdapters, split: Split, on_task: Callable[[TaskScore], None] | None = None
) -> list[TaskScore]:
    """Score every task of a testbed, calling `on_task` after each."""
    family_of = {line.task: line.family for line in testbed.lines}
    adapter_names = testbed.adapter_names
    scores: list[TaskScore] = []
    for task in testbed.task_names:
        lines = testbed.lines_of(task, split)
        if not lines:  # in the pool without being asked for
            continue
        siblings = [name for name in adapter_names if family_of[name] == family_of[task] and name != task]
        scores.append(
            TaskScore(
                task=task,
                family=lines[0].family,
                domain=lines[0].domain,
                num_prompts=len(lines),
                base=fmean(pool.answered(None, lines)),
                own_adapter=fmean(pool.answered(task, lines)) if task in adapter_names else None,
                siblings=fmean(fmean(pool.answered(name, lines)) for name in siblings) if siblings else None,
            )
        )
        if on_task is not None:
            on_task(scores[-1])
    return scores


def overall(scores: Sequence[TaskScore]) -> dict[str, float | int]:
    """Means over tasks; the unseen tasks are counted apart."""
    with_adapter = [score for score in scores if score.own_adapter is not None]
    unseen = [score for score in scores if score.own_adapter is None]
    siblings = [score.siblings for score in with_adapter if score.siblings is not None]
    summary: dict[str, float | int] = {
        "num_tasks": len(with_adapter),
        "num_prompts": sum(score.num_prompts for score in with_adapter),
        "base": fmean(score.base for score in with_adapter),
        "own_adapter": fmean(score.own_adapter or 0.0 for score in with_adapter),
    }
    if siblings:
        summary["siblings"] = fmean(siblings)
    if unseen:
        summary["num_unseen_tasks"] = len(unseen)
        summary["unseen_base"] = fmean(score.base for score in unseen)
    return {name: round(value, 4) for name, value in summary.items()}


def write_report(
    path: Path, *, provenance: dict[str, Any], split: Split, scores: Sequence[TaskScore]
) -> dict[str, Any]:
    """Write `report.json` (how the testbed was made, the means, and one entry a task) and return its content."""
    tasks = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(score).items()}
        for score in scores
    ]
    report = {**provenance, "split": split, "exact_match": overall(scores), "tasks": tasks}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
