"""The table of `hilora bench accuracy` as a document; its keys are a contract.

    default                                               the strategy of a router whose operator sets nothing
    strategies.NAME.{id, ood, unseen}.exact_match         share of lines answered exactly
                                      .ci                 its 95 % interval, drawn over tasks
                                      .normalized         divided by what own adapters reach (`id` of `oracle`)
    strategies.NAME.SETTING.vs_default                    paired difference with its interval
    strategies.NAME.SETTING.cost                          candidates, ROCs and milliseconds of a request
    references.{base, oracle}                             the same for the floor and the ceiling
    left_out.NAME                                         why a strategy was not measured

`SETTING` is one of `asked.SETTINGS`; one without lines has nulls. Shares are of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from hilora.errors import HiloraError
from hilora_lab.accuracy.accuracy_bench import BASE, ORACLE, AccuracyBench, settings_of
from hilora_lab.accuracy.asked import SETTINGS, AccuracySetting
from hilora_lab.accuracy.outcomes import Outcomes, choices, difference, interval, resampled, shares_by
from hilora_lab.accuracy.planner import DEFAULT_STRATEGY

Table = Mapping[AccuracySetting, Outcomes]
_REFERENCES = (BASE, ORACLE)
_BREAKDOWNS = ("kind", "family", "task")


@dataclass(frozen=True, kw_only=True)
class AccuracyRun:
    """Everything that was asked."""

    tables: Mapping[str, Table]
    """By strategy, the references among them."""
    left_out: Mapping[str, str]


def run_accuracy(
    bench: AccuracyBench, strategies: Sequence[str], on_strategy: Callable[[str], None] | None = None
) -> AccuracyRun:
    """Ask the strategies, the default and the references everything.

    A strategy that needs what this testbed does not have (a trained gate, a probe) is left out with its own words.
    """
    tables: dict[str, Table] = {}
    left_out: dict[str, str] = {}
    for strategy in dict.fromkeys((*_REFERENCES, DEFAULT_STRATEGY, *strategies)):
        try:
            tables[strategy] = {setting: bench.outcomes(strategy, setting) for setting in settings_of(bench.asked)}
        except HiloraError as error:
            if strategy in {*_REFERENCES, DEFAULT_STRATEGY}:
                raise
            left_out[strategy] = f"{error.code}: {error}"
        if on_strategy is not None:
            on_strategy(strategy)
    return AccuracyRun(tables=tables, left_out=left_out)


def accuracy_report(run: AccuracyRun, strategies: Sequence[str], *, seed: int) -> dict[str, Any]:
    """The document; the same for the same answers and seed, but for its milliseconds."""
    ceiling = run.tables[ORACLE]["id"].exact_match
    base = run.tables[BASE]
    default = run.tables[DEFAULT_STRATEGY]
    asked = [name for name in dict.fromkeys((DEFAULT_STRATEGY, *strategies)) if name in run.tables]

    def described(name: str) -> dict[str, Any]:
        table = run.tables[name]
        entry: dict[str, Any] = {
            setting: _setting(table.get(setting), default.get(setting), base.get(setting), ceiling, seed)
            for setting in SETTINGS
        }
        entry["mean_id_ood"] = _mean_id_ood(table, default, seed)
        return entry

    return {
        "default": DEFAULT_STRATEGY,
        "strategies": {name: described(name) for name in asked},
        "references": {name: described(name) for name in _REFERENCES},
        "left_out": dict(run.left_out),
        "choices": {setting: choices(outcomes) for setting, outcomes in default.items()},
    }


def _setting(
    found: Outcomes | None, default: Outcomes | None, base: Outcomes | None, ceiling: float, seed: int
) -> dict[str, Any]:
    if found is None or default is None or base is None:
        return {"exact_match": None, "ci": None, "normalized": None, "n": 0}
    gap, gap_interval = difference(found, default, seed=seed)
    over_base, over_base_interval = difference(found, base, seed=seed)
    num_lines = len(found.lines)
    forward_ms = 1e3 * found.forward_seconds / num_lines
    decide_ms = 1e3 * median(found.decide_seconds)
    family_of = {line.task: line.family for line in found.lines}
    return {
        "exact_match": found.exact_match,
        "ci": list(interval(resampled(found, seed=seed))),
        "normalized": found.exact_match / ceiling if ceiling else None,
        "n": num_lines,
        "num_tasks": len(found.tasks),
        "vs_default": {"difference": gap, "ci": list(gap_interval)},
        "vs_base": {"difference": over_base, "ci": list(over_base_interval)},
        "own_first": fmean(name == line.task for name, line in zip(found.chosen, found.lines, strict=True)),
        "family_first": fmean(
            family_of.get(name) == line.family for name, line in zip(found.chosen, found.lines, strict=True)
        ),
        "base_alone": fmean(not name for name in found.chosen),
        "unexplained": fmean(found.is_unexplained),
        "cost": {
            "candidates": fmean(found.num_candidates),
            "rocs": fmean(found.num_rocs),
            "decide_ms": decide_ms,
            "forward_ms": forward_ms,
            "added_ms": decide_ms + forward_ms - 1e3 * base.forward_seconds / num_lines,
        },
        **{f"by_{field}": shares_by(found, field) for field in _BREAKDOWNS},
    }


def _mean_id_ood(table: Table, default: Table, seed: int) -> dict[str, Any]:
    """The mean of both settings: the number that a default is chosen by. Both have the same tasks, so draws pair."""
    own_R = (resampled(table["id"], seed=seed) + resampled(table["ood"], seed=seed)) / 2
    default_R = (resampled(default["id"], seed=seed) + resampled(default["ood"], seed=seed)) / 2
    mean = (table["id"].exact_match + table["ood"].exact_match) / 2
    default_mean = (default["id"].exact_match + default["ood"].exact_match) / 2
    return {
        "exact_match": mean,
        "ci": list(interval(own_R)),
        "vs_default": {"difference": mean - default_mean, "ci": list(interval(np.asarray(own_R - default_R)))},
    }
