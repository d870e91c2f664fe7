"""From plans to index tables: which pool rows a token's gate chooses from, and by what rule.

Shapes: T tokens, G groups, S slots of a group, K kept slots, M modules.

A plan with scope `per_adapter` has one group per adapter, one with scope `global` a single group over all of them.
Tables depend on the module only through the rank the plan's adapters have there, so modules of equal ranks share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hilora.routing_plan import GateScope, RocScore, RoutingPlan
from services.worker.kernels.torch_ops import RocGate, bag_starts
from services.worker.lora.residency import keys_of
from services.worker.lora.roc_pool import RocKey, RocPool


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTable:
    """One gate with the pool rows behind its slots."""

    gate: RocGate
    rows_TGS: torch.Tensor
    """Row of the pool behind each slot; 0, the zero row, for padding."""
    bag_starts_T: torch.Tensor
    """Where each token's kept slots begin in one flat list."""

    @property
    def num_slots(self) -> int:
        """S."""
        return int(self.rows_TGS.shape[2])


@dataclass(frozen=True, slots=True)
class _Group:
    """Slots that compete with one another, for one token in one module."""

    rows: np.ndarray
    coefficients: np.ndarray
    budget: int


class TableBuilder:
    """Builds the tables of given plans for every module of a pool.

    Args:
        plans: one plan per token, or a single one for all tokens. All their adapters are committed.
        pool: where the rows are.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(
        self, plans: Sequence[RoutingPlan], pool: RocPool, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._plans = tuple(plans)
        self._dtype = dtype
        self._device = device
        self._keys = tuple(dict.fromkeys(key for plan in plans for key in keys_of(plan)))
        self._rows = {key: pool.rows(key).max(axis=0) for key in self._keys}
        self._ranks = {key: pool.module_ranks(key) for key in self._keys}

    @property
    def keys(self) -> tuple[RocKey, ...]:
        """The adapters that the tables refer to."""
        return self._keys

    @property
    def pool_rows(self) -> np.ndarray:
        """The zero row and all rows of those adapters, distinct."""
        return np.concatenate([np.zeros(1, dtype=np.int64), *self._rows.values()])

    def tables(self, num_modules: int) -> list[GateTable | None]:
        """One table per module; None where no adapter of the plans has ROCs."""
        by_ranks: dict[tuple[int, ...], GateTable | None] = {}
        tables: list[GateTable | None] = []
        for module_idx in range(num_modules):
            ranks = tuple(self._ranks[key][module_idx] for key in self._keys)
            if ranks not in by_ranks:
                by_ranks[ranks] = self._table(dict(zip(self._keys, ranks, strict=True)))
            tables.append(by_ranks[ranks])
        return tables

    def _table(self, ranks: Mapping[RocKey, int]) -> GateTable | None:
        if not any(ranks.values()):
            return None
        groups = [self._groups(plan, ranks) for plan in self._plans]
        num_tokens, num_groups = len(groups), max(map(len, groups))
        num_slots = max(len(group.rows) for of_token in groups for group in of_token)
        rows = np.zeros((num_tokens, num_groups, num_slots), dtype=np.int64)
        coefficients = np.zeros((num_tokens, num_groups, num_slots))
        budgets = np.zeros((num_tokens, num_groups), dtype=np.int64)
        is_full = True
        for token_idx, of_token in enumerate(groups):
            for group_idx, group in enumerate(of_token):
                place = (token_idx, group_idx, slice(len(group.rows)))
                rows[place] = group.rows
                coefficients[place] = group.coefficients
                budgets[token_idx, group_idx] = group.budget
                is_full = is_full and group.budget >= len(group.rows)
        kept = None
        if not is_full:
            kept = np.arange(min(int(budgets.max()), num_slots)) < budgets[..., None]
        gate = RocGate(
            coefficients_TGS=self._tensor(coefficients),
            kept_TGK=None if kept is None else self._tensor(kept),
            norm_weights_T11=None if kept is None else self._norm_weights(),
        )
        return GateTable(gate=gate, rows_TGS=torch.from_numpy(rows).to(self._device), bag_starts_T=bag_starts(gate))

    def _groups(self, plan: RoutingPlan, ranks: Mapping[RocKey, int]) -> list[_Group]:
        """The groups of one plan in modules where its adapters have these ranks; adapters without ROCs there, or
        without a budget, take no part."""
        groups: list[_Group] = []
        for budget in plan.budgets:
            if budget.num_rocs == 0:
                continue
            key = RocKey(budget.adapter_id, plan.gate.basis)
            rank = ranks[key]
            if rank == 0:
                continue
            groups.append(
                _Group(
                    rows=self._rows[key][:rank],
                    coefficients=np.full(rank, plan.gate.eta * budget.weight),
                    budget=budget.num_rocs_in(rank),
                )
            )
        if plan.gate.scope is GateScope.PER_ADAPTER or not groups:
            return groups
        return [
            _Group(
                rows=np.concatenate([group.rows for group in groups]),
                coefficients=np.concatenate([group.coefficients for group in groups]),
                budget=sum(group.budget for group in groups),
            )
        ]

    def _norm_weights(self) -> torch.Tensor | None:
        by_contribution = np.array([plan.gate.score is RocScore.CONTRIBUTION for plan in self._plans])
        return self._tensor(by_contribution[:, None, None]) if by_contribution.any() else None

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=self._device, dtype=self._dtype)
