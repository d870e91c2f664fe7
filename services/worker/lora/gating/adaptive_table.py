"""What the plans of a step that share one adaptive rule are, as slots: tables for all of their tokens at once.

Shapes: P distinct plans, L the largest number of adapters in one of them, S the largest number of components of one of
those, N layers that they target, U columns (the components of all their adapters side by side), C columns of a product
of the layer, X = L S slots of a plan side by side.

Several plans share one product with the U components of all of them, in which each plan finds its own slots. A single
plan has slots and columns in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hilora.routing_plan import GateScope, RoutingPlan
from services.worker.lora.gating.gate_tables import StepTable
from services.worker.lora.pool.roc_pool import RocPool


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgets:
    """How many of its slots each plan may use in a layer where that is not all of them."""

    of_adapters_PL1: torch.Tensor
    """By adapter; S where nothing is decided so."""
    of_plans_P1: torch.Tensor
    """By plan, over all its adapters; X where nothing is decided so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLayer:
    """One layer's slots."""

    rows_C: torch.Tensor
    """Row of the arena behind each column."""
    rows_PX: torch.Tensor
    """Row of the arena behind each slot; 0, the zero row, for padding."""
    is_there_PL: torch.Tensor | None
    """Whether an adapter has components here; None if all have."""
    is_real_PX: torch.Tensor
    """Whether a component is behind a slot."""
    budgets: Budgets | None
    """None if every plan may use all its slots."""


class AdaptiveTable:
    """The slots of some plans.

    Args:
        plans: distinct ones of one rule and one learned gate, in the order of the table's.
        table: which token uses which of them; no token is without.
        pool: where their adapters are.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(
        self,
        plans: Sequence[RoutingPlan],
        table: StepTable,
        pool: RocPool,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._table = table
        self._pool = pool
        self._device = device
        self.gate = plans[0].gate
        """The first plan's: rule, basis and learned gate are those of all of them."""
        self.num_plans = len(plans)
        self.num_adapters = max(len(plan.keys) for plan in table.plans)
        self.num_slots = max(max(plan.ranks) for plan in table.plans)
        self.adapter_ids = tuple(key.adapter_id for key in table.keys)
        """The plans' distinct adapters."""
        number = {key: place for place, key in enumerate(table.keys)}
        self._columns_PLS = np.full((self.num_plans, self.num_adapters, self.num_slots), table.num_columns)
        self.owners_PL = np.full((self.num_plans, self.num_adapters), -1)
        """Which of the distinct adapters each of a plan's is; -1 for padding."""
        constants_PL1 = np.zeros((self.num_plans, self.num_adapters, 1))
        for plan_idx, plan in enumerate(table.plans):
            first_slot = 0
            for place, (key, rank) in enumerate(zip(plan.keys, plan.ranks, strict=True)):
                first = table.first_columns[key]
                self._columns_PLS[plan_idx, place, :rank] = np.arange(first, first + rank)
                self.owners_PL[plan_idx, place] = number[key]
                constants_PL1[plan_idx, place] = plan.factors_P[first_slot]
                first_slot += rank
        self.token_plans_T = self.tensor(table.token_plans.astype(np.int64))
        self.columns_PX = self.tensor(self._columns_PLS.reshape(self.num_plans, -1))
        self.constants_PL1 = self.tensor(constants_PL1).to(dtype)
        """`eta * weight` of each adapter."""
        gates = [plan.gate for plan in plans]
        self.temperatures_P1 = self.tensor(np.array([[gate.temperature] for gate in gates]))
        self.tops = tuple(gate.top_k for gate in gates)
        """How many a token of each plan keeps; 0 for all."""
        self.is_by_norm = any(plan.is_by_norm for plan in table.plans)
        self.by_norm_P11 = self.tensor(np.array([plan.is_by_norm for plan in table.plans])[:, None, None])
        """Whether a plan's components compete by contribution."""
        self._is_global_P = np.array([gate.scope is GateScope.GLOBAL for gate in gates])
        self._plans = tuple(plans)

    @property
    def is_shared(self) -> bool:
        """Whether several plans share the products."""
        return self.num_plans > 1

    @cached_property
    def competing_weights(self) -> torch.Tensor:
        """Weight of each adapter `[P, L, 1]`, by which the components of a plan of global scope compete."""
        weights = np.zeros((self.num_plans, self.num_adapters, 1))
        for plan_idx, plan in enumerate(self._plans):
            acting = [budget.weight for budget in plan.budgets if budget.num_rocs > 0]
            weights[plan_idx, : len(acting), 0] = acting
        return self.tensor(weights).to(self.constants_PL1.dtype)

    def layer(self, module_idx: int) -> SlotLayer | None:
        """The slots of a layer; None if no adapter has components there."""
        place = self._table.place_of.get(module_idx)
        if place is None:
            return None
        rows_C = np.append(self._table.rows_NU[place], np.int32(0)).astype(np.int64)
        rows_PLS = rows_C[self._columns_PLS]
        is_real_PLS = rows_PLS > 0
        is_there_PL = is_real_PLS[:, :, 0]
        rows_PX = self.tensor(rows_PLS.reshape(self.num_plans, -1))
        return SlotLayer(
            rows_C=self.tensor(rows_C) if self.is_shared else rows_PX[0],
            rows_PX=rows_PX,
            is_there_PL=None if is_there_PL.all() else self.tensor(is_there_PL),
            is_real_PX=self.tensor(is_real_PLS.reshape(self.num_plans, -1)),
            budgets=self._budgets(module_idx, is_real_PLS),
        )

    def ranks(self, module_idx: int) -> list[int]:
        """Components of each of the distinct adapters in a layer."""
        return [self._pool.module_ranks(key)[module_idx] for key in self._table.keys]

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _budgets(self, module_idx: int, is_real_PLS: np.ndarray) -> Budgets | None:
        of_adapters_PL = np.full(self.owners_PL.shape, self.num_slots)
        of_plans_P = np.full(self.num_plans, self.num_adapters * self.num_slots)
        is_full = True
        for plan_idx, plan in enumerate(self._table.plans):
            budgets_G = plan.budgets_MG[module_idx]
            is_full = is_full and int(budgets_G.sum()) == int(is_real_PLS[plan_idx].sum())
            if self._is_global_P[plan_idx]:
                of_plans_P[plan_idx] = budgets_G[0]
            else:
                of_adapters_PL[plan_idx, : len(budgets_G)] = budgets_G
        if is_full:
            return None
        return Budgets(
            of_adapters_PL1=self.tensor(of_adapters_PL[..., None]), of_plans_P1=self.tensor(of_plans_P[:, None])
        )
