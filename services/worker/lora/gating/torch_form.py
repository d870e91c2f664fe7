"""A step's ROC work in torch operations, for every type and device.

Shapes: T rows, D in-features, O out-features, U columns of a step, G groups, S slots of a group, K kept slots or
selected rows, R components of a plan.

Three forms, one gate. `UnionSegment`: decode rows with plans of their own; one product with all columns of the step,
then each row gathers its own. `PackSegment`: the same rows with a pack of components each, better once the columns are
many. `ChunkSegment`: many tokens of one plan, dense products with that plan's components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from services.worker.kernels import torch_ops
from services.worker.kernels.torch_ops import KeptRocs, RocGate, bag_starts
from services.worker.lora.gating.gate_tables import PlanTable, StepTable
from services.worker.lora.pool.roc_arena import RocArena
from services.worker.lora.pool.roc_pool import RocPool


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTable:
    """One layer's gate with the places behind its slots."""

    gate: RocGate
    columns_TGS: torch.Tensor
    """Column of the step behind each slot; column U, of zeros, for padding."""
    rows_TGS: torch.Tensor
    """Row of the pool behind each slot; 0, the zero row, for padding."""
    bag_starts_T: torch.Tensor
    """Where each token's kept slots begin in one flat list."""

    def selected(self, row_idx_K: torch.Tensor) -> GateTable:
        """The table of some of its tokens."""
        gate = RocGate(
            coefficients_TGS=self.gate.coefficients_TGS[row_idx_K],
            kept_TGK=None if self.gate.kept_TGK is None else self.gate.kept_TGK[row_idx_K],
            norm_weights_T11=None if self.gate.norm_weights_T11 is None else self.gate.norm_weights_T11[row_idx_K],
        )
        return GateTable(
            gate=gate,
            columns_TGS=self.columns_TGS[row_idx_K],
            rows_TGS=self.rows_TGS[row_idx_K],
            bag_starts_T=bag_starts(gate),
        )


class TokenGates:
    """The gate tables of a step by layer, made when a layer first asks; layers of equal budgets share their gate.

    Args:
        table: the step's tokens and plans. Tokens without a plan get slots of padding only.
        pool: where the rows are.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(self, table: StepTable, pool: RocPool, *, dtype: torch.dtype, device: torch.device) -> None:
        self._table = table
        self._pool = pool
        self._dtype = dtype
        self._device = device
        num_groups = max(len(plan.group_sizes) for plan in table.plans)
        num_slots = max(max(plan.group_sizes) for plan in table.plans)
        # One more plan at the end, of padding, for tokens without one: -1 finds it.
        num_plans = len(table.plans) + 1
        self._columns_LGS = np.full((num_plans, num_groups, num_slots), table.num_columns, dtype=np.int64)
        self._factors_LGS = np.zeros((num_plans, num_groups, num_slots))
        for plan_idx, plan in enumerate(table.plans):
            self._place(plan_idx, plan)
        self._gates: dict[tuple[bytes, bool], RocGate] = {}
        self._columns_TGS = torch.from_numpy(self._columns_LGS[table.token_plans]).to(device)
        self._by_module: dict[int, GateTable | None] = {}

    def of(self, module_idx: int) -> GateTable | None:
        """The table of a layer; None if no adapter has components there."""
        if module_idx not in self._by_module:
            self._by_module[module_idx] = self._made(module_idx)
        return self._by_module[module_idx]

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add the output of components whose input is a one-hot token: `a . x` is one entry of `a`."""
        table = self.of(module_idx)
        if table is None:
            return
        arena = self._pool.arena(module_idx)
        h_TGS = arena.a_ND[table.rows_TGS, token_ids_T[:, None, None]]
        kept = torch_ops.roc_gate(h_TGS, table.gate, norms_of(table, arena))
        y_TO += torch_ops.roc_expand(kept, table.rows_TGS, arena.b_NO, table.bag_starts_T)

    def _place(self, plan_idx: int, plan: PlanTable) -> None:
        columns, first = self._table.columns_of(plan), 0
        for group_idx, size in enumerate(plan.group_sizes):
            self._columns_LGS[plan_idx, group_idx, :size] = columns[first : first + size]
            self._factors_LGS[plan_idx, group_idx, :size] = plan.factors_P[first : first + size]
            first += size

    def _made(self, module_idx: int) -> GateTable | None:
        table = self._table
        place = table.place_of.get(module_idx)
        if place is None:
            return None
        budgets_LG = np.zeros(self._columns_LGS.shape[:2], dtype=np.int64)
        for plan_idx, plan in enumerate(table.plans):
            budgets_LG[plan_idx, : len(plan.group_sizes)] = plan.budgets_MG[module_idx]
        rows_U = np.append(table.rows_NU[place], 0).astype(np.int64)
        rows_LGS = rows_U[self._columns_LGS]
        is_full = not (budgets_LG < (rows_LGS != 0).sum(axis=2)).any()
        key = (budgets_LG.tobytes(), is_full)
        if key not in self._gates:
            self._gates[key] = self._gate(budgets_LG, is_full=is_full)
        gate = self._gates[key]
        return GateTable(
            gate=gate,
            columns_TGS=self._columns_TGS,
            rows_TGS=torch.from_numpy(rows_LGS[table.token_plans]).to(self._device),
            bag_starts_T=bag_starts(gate),
        )

    def _gate(self, budgets_LG: np.ndarray, *, is_full: bool) -> RocGate:
        token_plans, num_slots = self._table.token_plans, self._columns_LGS.shape[2]
        kept = None
        if not is_full:
            kept = np.arange(min(int(budgets_LG.max()), num_slots)) < budgets_LG[..., None]
        return RocGate(
            coefficients_TGS=self._tensor(self._factors_LGS[token_plans]),
            kept_TGK=None if kept is None else self._tensor(kept[token_plans]),
            norm_weights_T11=None if kept is None else self._norm_weights(),
        )

    def _norm_weights(self) -> torch.Tensor | None:
        by_norm = np.array([*(plan.is_by_norm for plan in self._table.plans), False])
        return self._tensor(by_norm[self._table.token_plans, None, None]) if by_norm.any() else None

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=self._device, dtype=self._dtype)


def norms_of(table: GateTable, arena: RocArena) -> torch.Tensor | None:
    """Norms of the up-vectors behind a table's slots, if its rule needs them."""
    return None if table.gate.norm_weights_T11 is None else arena.b_norms_N[table.rows_TGS]


class UnionSegment:
    """Decode rows with plans of their own: one product with the components of all of them."""

    def __init__(self, rows: slice, table: StepTable, gates: TokenGates, pool: RocPool) -> None:
        self.rows = rows
        self._table = table
        self._gates = gates
        self._pool = pool
        self._a: dict[int, torch.Tensor] = {}

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is not None:
            self._apply(module_idx, table, x_TD, y_TO)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is not None:
            self._apply(module_idx, table.selected(row_idx_K), x_KD, y_KO)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        self._gates.add_embedding(module_idx, token_ids_T, y_TO)

    def _apply(self, module_idx: int, table: GateTable, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        arena = self._pool.arena(module_idx)
        a_UD = self._a.get(module_idx)
        if a_UD is None:
            rows_U = np.append(self._table.rows_NU[self._table.place_of[module_idx]], 0).astype(np.int64)
            a_UD = self._a[module_idx] = arena.a_ND.index_select(0, torch.from_numpy(rows_U).to(x_TD.device))
        h_TU = torch_ops.roc_shrink(x_TD, a_UD)
        h_TGS = h_TU.gather(1, table.columns_TGS.flatten(1)).view(table.columns_TGS.shape)
        _expand(torch_ops.roc_gate(h_TGS, table.gate, norms_of(table, arena)), table, arena, y_TO)


class PackSegment:
    """Decode rows with plans of their own: each row meets a pack of its own components."""

    def __init__(self, rows: slice, gates: TokenGates, pool: RocPool) -> None:
        self.rows = rows
        self._gates = gates
        self._pool = pool
        self._packs: dict[int, torch.Tensor] = {}

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is None:
            return
        packs_TRD = self._packs.get(module_idx)
        if packs_TRD is None:
            packs_TRD = self._packs[module_idx] = self._pool.arena(module_idx).a_ND[table.rows_TGS.flatten(1)]
        self._apply(module_idx, table, packs_TRD, x_TD, y_TO)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is None:
            return
        table = table.selected(row_idx_K)
        packs_KRD = self._pool.arena(module_idx).a_ND[table.rows_TGS.flatten(1)]
        self._apply(module_idx, table, packs_KRD, x_KD, y_KO)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        self._gates.add_embedding(module_idx, token_ids_T, y_TO)

    def _apply(
        self, module_idx: int, table: GateTable, packs_TRD: torch.Tensor, x_TD: torch.Tensor, y_TO: torch.Tensor
    ) -> None:
        arena = self._pool.arena(module_idx)
        h_TGS = torch.bmm(packs_TRD, x_TD[..., None]).view(table.rows_TGS.shape)
        _expand(torch_ops.roc_gate(h_TGS, table.gate, norms_of(table, arena)), table, arena, y_TO)


class ChunkSegment:
    """Many tokens of one plan: dense products with the plan's components.

    Args:
        rows: of the step.
        gates: tables of a step of one token with that plan; shared by all chunks of the plan.
        pool: where the rows are.
    """

    def __init__(self, rows: slice, gates: TokenGates, pool: RocPool) -> None:
        self.rows = rows
        self._gates = gates
        self._pool = pool

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is None:
            return
        arena = self._pool.arena(module_idx)
        rows_R = table.rows_TGS.flatten()
        h_TR = torch_ops.roc_shrink(x_TD, arena.a_ND.index_select(0, rows_R))
        kept = torch_ops.roc_gate(h_TR.view(-1, *table.rows_TGS.shape[1:]), table.gate, norms_of(table, arena))
        y_TO += torch_ops.roc_expand_shared(kept, table.rows_TGS.shape[2], arena.b_NO.index_select(0, rows_R))

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`: all rows are alike."""
        del row_idx_K
        self.add(module_idx, x_KD, y_KO)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        table = self._gates.of(module_idx)
        if table is None:
            return
        arena = self._pool.arena(module_idx)
        rows_R = table.rows_TGS.flatten()
        h_TR = arena.a_ND[rows_R[None], token_ids_T[:, None]]
        kept = torch_ops.roc_gate(h_TR.view(-1, *table.rows_TGS.shape[1:]), table.gate, norms_of(table, arena))
        y_TO += torch_ops.roc_expand_shared(kept, table.rows_TGS.shape[2], arena.b_NO.index_select(0, rows_R))


def _expand(kept: KeptRocs, table: GateTable, arena: RocArena, y_TO: torch.Tensor) -> None:
    y_TO += torch_ops.roc_expand(kept, table.rows_TGS, arena.b_NO, table.bag_starts_T)
