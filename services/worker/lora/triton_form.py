"""A step's ROC work as two GPU kernels per linear layer.

Shapes: T rows of the step, L plans, G groups, S slots of a group, M layers, I items, K selected rows.

All tables are made once per row layout and go to the device in a few copies; a step then launches kernels and nothing
else. Rows of one plan in a prompt chunk are cut into items of 16; each decode row is an item of its own, ordered by
plan, so that neighbours share rows of the pool in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from services.worker.kernels.triton_ops import MIN_GROUP_SLOTS, ItemBuffers, LayerBuffers, roc_expand, roc_shrink_gate
from services.worker.lora.gate_tables import StepTable
from services.worker.lora.roc_pool import RocPool
from services.worker.lora.torch_form import TokenGates

_CHUNK_ROWS = 16
"""Rows of one item of a prompt chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Items:
    """Items of one size."""

    buffers: ItemBuffers
    block_tokens: int


class TritonSegment:
    """All rows of a step whose plans gate by components, on a GPU.

    Args:
        table: the step's tokens and plans.
        pool: where the rows are.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(self, table: StepTable, pool: RocPool, *, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = slice(0, table.num_tokens)
        self._table = table
        self._pool = pool
        self._dtype = dtype
        self._device = device
        num_groups = _power_of_two(max(len(plan.group_sizes) for plan in table.plans))
        num_slots = max(MIN_GROUP_SLOTS, _power_of_two(max(max(plan.group_sizes) for plan in table.plans)))
        columns_LGS = np.full((len(table.plans), num_groups, num_slots), table.num_columns, dtype=np.int64)
        factors_LGS = np.zeros(columns_LGS.shape, dtype=np.float32)
        budgets_MLG = np.zeros((len(table.rows_MU), len(table.plans), num_groups), dtype=np.int32)
        for plan_idx, plan in enumerate(table.plans):
            columns, first = table.columns_of(plan), 0
            for group_idx, size in enumerate(plan.group_sizes):
                columns_LGS[plan_idx, group_idx, :size] = columns[first : first + size]
                factors_LGS[plan_idx, group_idx, :size] = plan.factors_P[first : first + size]
                first += size
            budgets_MLG[:, plan_idx, : len(plan.group_sizes)] = plan.budgets_MG
        rows_MU = np.concatenate([table.rows_MU, np.zeros((len(table.rows_MU), 1), dtype=np.int32)], axis=1)
        self._rows_MLGS = self._tensor(rows_MU[:, columns_LGS])
        self._budgets_MLG = self._tensor(budgets_MLG)
        self._factors_LGS = self._tensor(factors_LGS)
        self._is_by_norm_L = self._tensor(np.array([plan.is_by_norm for plan in table.plans], dtype=np.int32))
        self._token_plans_T = self._tensor(table.token_plans.astype(np.int32))
        self._items = self._cut_into_items()
        self._gains_TGS = torch.empty(table.num_tokens, num_groups, num_slots, device=device)

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        self._apply(module_idx, x_TD, y_TO, self._items, self._gains_TGS)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`."""
        plans_K = self._token_plans_T[row_idx_K]
        items = self._made_items(
            torch.arange(len(plans_K), dtype=torch.int32, device=self._device), (plans_K >= 0).int(), plans_K, 1
        )
        gains_KGS = self._gains_TGS.new_empty(len(plans_K), *self._gains_TGS.shape[1:])
        self._apply(module_idx, x_KD, y_KO, [items], gains_KGS)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        TokenGates(self._table, self._pool, dtype=self._dtype, device=self._device).add_embedding(
            module_idx, token_ids_T, y_TO
        )

    def _apply(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        items: list[_Items],
        gains_TGS: torch.Tensor,
    ) -> None:
        if not self._table.is_targeted_M[module_idx]:
            return
        if x_TD.stride(1) != 1:
            x_TD = x_TD.contiguous()
        arena = self._pool.arena(module_idx)
        layer = LayerBuffers(rows_LGS=self._rows_MLGS[module_idx], budgets_LG=self._budgets_MLG[module_idx])
        for of_size in items:
            roc_shrink_gate(
                x_TD,
                arena.a_ND,
                arena.b_norms_N,
                of_size.buffers,
                layer,
                gains_TGS,
                block_tokens=of_size.block_tokens,
            )
            roc_expand(gains_TGS, arena.b_NO, of_size.buffers, layer, y_TO, block_tokens=of_size.block_tokens)

    def _cut_into_items(self) -> list[_Items]:
        """Single rows and pieces of longer runs; rows without a plan are in no item."""
        token_plans = self._table.token_plans
        bounds = np.flatnonzero(np.diff(token_plans, prepend=-2, append=-2))
        singles: list[tuple[int, int, int]] = []
        pieces: list[tuple[int, int, int]] = []
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            plan = int(token_plans[start])
            if plan < 0:
                continue
            if stop - start == 1:
                singles.append((start, 1, plan))
            else:
                pieces.extend(
                    (first, min(_CHUNK_ROWS, stop - first), plan) for first in range(start, stop, _CHUNK_ROWS)
                )
        singles.sort(key=lambda item: item[2])
        made: list[_Items] = []
        for cut, block_tokens in ((singles, 1), (pieces, _CHUNK_ROWS)):
            if cut:
                first_rows, num_rows, plans = (self._tensor(column) for column in np.array(cut, dtype=np.int32).T)
                made.append(self._made_items(first_rows, num_rows, plans, block_tokens))
        return made

    def _made_items(
        self, first_rows_I: torch.Tensor, num_rows_I: torch.Tensor, plans_I: torch.Tensor, block_tokens: int
    ) -> _Items:
        buffers = ItemBuffers(
            first_rows_I=first_rows_I,
            num_rows_I=num_rows_I,
            plans_I=plans_I,
            factors_LGS=self._factors_LGS,
            is_by_norm_L=self._is_by_norm_L,
        )
        return _Items(buffers=buffers, block_tokens=block_tokens)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
