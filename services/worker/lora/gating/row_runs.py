"""Rows of a step by plan, and which of them are handled together where tokens choose among adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hilora.routing_plan import RoutingPlan
from services.worker.lora.gating.gate_tables import PlanTable
from services.worker.lora.pool.pool_entries import RocKey

MAX_SHARED_PRODUCTS = 1 << 14
"""Rows times components up to which adaptive plans share a segment. There each row is multiplied with the components of
all plans; a segment of its own is some fifteen operators a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Consecutive rows with one plan."""

    start: int
    stop: int
    plan: RoutingPlan


def adaptive_parts(runs: Sequence[Run], table_of: Callable[[RoutingPlan], PlanTable]) -> list[list[Run]]:
    """Runs of adaptive plans, cut into parts that take one segment each: neighbours of one rule and one learned gate,
    as long as their common products stay small.

    Args:
        runs: in the order of their rows.
        table_of: a plan's table.
    """
    parts: list[list[Run]] = []
    ranks: dict[RocKey, int] = {}
    for run in runs:
        table = table_of(run.plan)
        own = dict(zip(table.keys, table.ranks, strict=True))
        if parts and _may_follow(parts[-1], run, ranks | own):
            parts[-1].append(run)
            ranks |= own
        else:
            parts.append([run])
            ranks = own
    return parts


def _may_follow(part: Sequence[Run], run: Run, ranks: dict[RocKey, int]) -> bool:
    first, last = part[0], part[-1]
    if last.stop != run.start or _kind_of(last.plan) != _kind_of(run.plan):
        return False
    if first.plan.digest == last.plan.digest == run.plan.digest:
        return True
    return (run.stop - first.start) * sum(ranks.values()) <= MAX_SHARED_PRODUCTS


def _kind_of(plan: RoutingPlan) -> tuple[object, ...]:
    return (plan.gate.rule, plan.gate.basis, plan.gate.gate_id)
