"""From plans to index tables: which components a token's gate chooses from, and by what rule. Numbers only, no tensors.

Shapes: M layers, N of them targeted by a step, P slots of a plan (its adapters' components side by side), G gate groups
of a plan, U columns of a step (the components of all its adapters side by side), T tokens.

A plan with scope `per_adapter` has one group per adapter, one with scope `global` a single group over all of them. A
slot names a column, a column has a row of the pool in every layer; so everything but rows and budgets is the same for
all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.lora.pool.residency import keys_of
from services.worker.lora.pool.roc_pool import RocKey, RocPool


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTable:
    """One plan's slots and groups. Depends on the adapters' ranks alone, which never change."""

    keys: tuple[RocKey, ...]
    """Its adapters, in slot order; those without a budget take no part."""
    ranks: tuple[int, ...]
    """Slots of each adapter: its largest module's rank."""
    factors_P: np.ndarray
    """`eta * weight` of each slot's adapter, float64."""
    group_sizes: tuple[int, ...]
    """Slots of each group."""
    budgets_MG: np.ndarray
    """Components that each group may keep in each layer, int32."""
    is_targeted_M: np.ndarray
    """Whether any of its adapters has components in each layer."""
    is_by_norm: bool
    """Whether components compete by contribution."""

    @property
    def num_slots(self) -> int:
        """P."""
        return len(self.factors_P)


def plan_table(plan: RoutingPlan, pool: RocPool) -> PlanTable:
    """The table of a plan whose adapters are all committed."""
    keys = keys_of(plan)
    acting = {RocKey(budget.adapter_id, plan.gate.basis): budget for budget in plan.budgets if budget.num_rocs > 0}
    module_ranks = [pool.module_ranks(key) for key in keys]
    ranks = tuple(max(of_modules) for of_modules in module_ranks)
    budgets = np.zeros((pool.num_modules, len(keys)), dtype=np.int32)
    for place, key in enumerate(keys):
        by_rank = {rank: acting[key].num_rocs_in(rank) for rank in set(module_ranks[place])}
        budgets[:, place] = [by_rank[rank] for rank in module_ranks[place]]
    factors = [plan.gate.eta * acting[key].weight for key in keys]
    if plan.gate.scope is GateScope.GLOBAL:
        budgets = budgets.sum(axis=1, dtype=np.int32, keepdims=True)
    return PlanTable(
        keys=keys,
        ranks=ranks,
        factors_P=np.repeat(np.asarray(factors, dtype=np.float64), ranks),
        group_sizes=(sum(ranks),) if plan.gate.scope is GateScope.GLOBAL else ranks,
        budgets_MG=budgets,
        is_targeted_M=np.any(np.asarray(module_ranks) > 0, axis=0),
        is_by_norm=plan.gate.score is RocScore.CONTRIBUTION,
    )


class StepTable:
    """Which token uses which plan, and where the plans' components are in the pool now.

    Args:
        plans: the distinct plans of the tokens.
        token_plans: index into `plans` for each token, int32 `[T]`; -1 for a token without ROCs.
        pool: where the rows are.
    """

    def __init__(self, plans: Sequence[PlanTable], token_plans: np.ndarray, pool: RocPool) -> None:
        self.plans = tuple(plans)
        self.token_plans = token_plans
        self.keys = tuple(dict.fromkeys(key for plan in plans for key in plan.keys))
        is_targeted_M = np.logical_or.reduce([plan.is_targeted_M for plan in plans])
        self.targets_N = np.flatnonzero(is_targeted_M)
        """The layers that any adapter has components in, by module index: of a mixture's thousands, few."""
        self.place_of = {int(module_idx): place for place, module_idx in enumerate(self.targets_N)}
        """Where a targeted layer stands among them."""
        rows = [pool.rows(key).of_modules(self.targets_N) for key in self.keys]
        self.rows_NU = np.ascontiguousarray(np.concatenate(rows, axis=1), dtype=np.int32)
        """Row of the pool behind each column in each targeted layer; 0, the zero row, for padding."""
        self.ranks = tuple(of_key.shape[1] for of_key in rows)
        """Columns of each key."""
        starts = np.cumsum((0, *self.ranks))
        self.first_columns = dict(zip(self.keys, starts[:-1].tolist(), strict=True))

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_plans)

    @property
    def num_columns(self) -> int:
        """U."""
        return int(self.rows_NU.shape[1])

    def columns_of(self, plan: PlanTable) -> np.ndarray:
        """The column behind each of a plan's slots, int64 `[P]`."""
        return np.concatenate(
            [
                np.arange(self.first_columns[key], self.first_columns[key] + rank)
                for key, rank in zip(plan.keys, plan.ranks, strict=True)
            ]
        )
