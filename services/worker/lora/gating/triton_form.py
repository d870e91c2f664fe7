"""A step's ROC work as two GPU kernels per linear layer.

Shapes: T rows of the step, L plans, G groups, S slots of a group, N layers that the step targets, I items, K selected
rows.

All tables are made once per row layout and go to the device in a few copies; a step then launches kernels and nothing
else. Rows of one plan in a prompt chunk are cut into items of 16; each decode row is an item of its own, ordered by
plan, so that neighbours share rows of the pool in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from services.worker.kernels.triton_ops import MIN_GROUP_SLOTS, ItemBuffers, LayerBuffers, roc_expand, roc_shrink_gate
from services.worker.lora.gating.gate_tables import StepTable
from services.worker.lora.gating.torch_form import TokenGates
from services.worker.lora.pool.roc_arena import RocArena
from services.worker.lora.pool.roc_pool import RocPool

MAX_CONTEST_SLOTS = 256
"""Slots that one program can hold while they compete; plans with larger contests take the torch form."""
_CHUNK_ROWS = 16
"""Rows of one item of a prompt chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Items:
    """Items of one size."""

    buffers: ItemBuffers
    block_tokens: int


class TritonBuffers:
    """The tables of a decode-only step in buffers of fixed size: what a captured graph reads.

    Args:
        num_rows: rows of the graph; those beyond a step's own do nothing.
        shape: G and S.
        place_of: where each targeted layer stands among the targeted ones.
        pool: where the rows are.
        device: the model's.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        shape: tuple[int, int],
        place_of: dict[int, int],
        pool: RocPool,
        device: torch.device,
    ) -> None:
        def int32(*sizes: int) -> torch.Tensor:
            return torch.zeros(sizes, dtype=torch.int32, device=device)

        self.rows_NLGS = int32(len(place_of), num_rows, *shape)
        self.budgets_NLG = int32(len(place_of), num_rows, shape[0])
        self.factors_LGS = torch.zeros(num_rows, *shape, device=device)
        self.is_by_norm_L = int32(num_rows)
        self.plans_I = int32(num_rows)
        self.num_rows_I = int32(num_rows)
        self._first_rows_I = torch.arange(num_rows, dtype=torch.int32, device=device)
        self._gains_TGS = torch.zeros(num_rows, *shape, device=device)
        self._place_of = place_of
        self._pool = pool

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        *,
        is_output_embedding: bool = False,
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        """Stands in for `StepRocs` while a graph is captured. Graphs do not serve adapters of the output embedding, nor
        layers that see a selection of the tokens: which ones is not known before.
        """
        place = self._place_of.get(module_idx)
        if is_output_embedding or place is None:
            return
        assert token_idx_T is None, "layers that select tokens cannot be captured"
        arena = self._pool.arena(module_idx)
        items = ItemBuffers(
            first_rows_I=self._first_rows_I,
            num_rows_I=self.num_rows_I,
            plans_I=self.plans_I,
            factors_LGS=self.factors_LGS,
            is_by_norm_L=self.is_by_norm_L,
        )
        layer = LayerBuffers(rows_LGS=self.rows_NLGS[place], budgets_LG=self.budgets_NLG[place])
        roc_shrink_gate(x_TD, arena.a_ND, arena.b_norms_N, items, layer, self._gains_TGS, block_tokens=1)
        roc_expand(self._gains_TGS, arena.b_NO, items, layer, y_TO, block_tokens=1)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Stands in for `StepRocs`: graphs do not serve adapters of embeddings either, so there is nothing to add."""

    def is_targeted(self, module_idx: int) -> bool:
        """See `StepRocs`."""
        return module_idx in self._place_of

    def has_targets(self, module_idxs: slice) -> bool:
        """See `StepRocs`."""
        return any(module_idxs.start <= module_idx < module_idxs.stop for module_idx in self._place_of)


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
        budgets_NLG = np.zeros((len(table.targets_N), len(table.plans), num_groups), dtype=np.int32)
        for plan_idx, plan in enumerate(table.plans):
            columns, first = table.columns_of(plan), 0
            for group_idx, size in enumerate(plan.group_sizes):
                columns_LGS[plan_idx, group_idx, :size] = columns[first : first + size]
                factors_LGS[plan_idx, group_idx, :size] = plan.factors_P[first : first + size]
                first += size
            budgets_NLG[:, plan_idx, : len(plan.group_sizes)] = plan.budgets_MG[table.targets_N]
        rows_NU = np.concatenate([table.rows_NU, np.zeros((len(table.targets_N), 1), dtype=np.int32)], axis=1)
        self._rows_NLGS = self._tensor(rows_NU[:, columns_LGS])
        self._budgets_NLG = self._tensor(budgets_NLG)
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
        if module_idx in self._table.place_of:
            gates = TokenGates(self._table, self._pool, dtype=self._dtype, device=self._device)
            gates.add_embedding(module_idx, token_ids_T, y_TO)

    @cached_property
    def targeted(self) -> frozenset[int]:
        """Layers that any adapter of the step has components in."""
        return frozenset(self._table.place_of)

    @cached_property
    def arenas(self) -> tuple[RocArena, ...]:
        """The rows of the targeted layers: what a captured graph holds the addresses of. This segment is not used any
        more once the pool has replaced one of them."""
        return tuple(self._pool.arena(module_idx) for module_idx in self._table.place_of)

    def static_buffers(self, num_rows: int) -> TritonBuffers:
        """Buffers for steps of up to `num_rows` rows with this one's shape and layers."""
        return TritonBuffers(
            num_rows=num_rows,
            shape=self.shape,
            place_of=self._table.place_of,
            pool=self._pool,
            device=self._device,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """G and S: with the number of rows, all that the launches of a decode-only step depend on."""
        _, _, num_groups, num_slots = self._rows_NLGS.shape
        return num_groups, num_slots

    def load_into(self, buffers: TritonBuffers) -> None:
        """Copy the tables of a decode-only step into buffers that a captured graph reads."""
        num_rows, num_plans = self._table.num_tokens, self._rows_NLGS.shape[1]
        buffers.rows_NLGS[:, :num_plans] = self._rows_NLGS
        buffers.budgets_NLG[:, :num_plans] = self._budgets_NLG
        buffers.factors_LGS[:num_plans] = self._factors_LGS
        buffers.is_by_norm_L[:num_plans] = self._is_by_norm_L
        buffers.plans_I[:num_rows] = self._token_plans_T
        buffers.num_rows_I.zero_()
        buffers.num_rows_I[:num_rows] = self._token_plans_T >= 0

    def _apply(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        items: list[_Items],
        gains_TGS: torch.Tensor,
    ) -> None:
        place = self._table.place_of.get(module_idx)
        if place is None:
            return
        if x_TD.stride(1) != 1:
            x_TD = x_TD.contiguous()
        arena = self._pool.arena(module_idx)
        layer = LayerBuffers(rows_LGS=self._rows_NLGS[place], budgets_LG=self._budgets_NLG[place])
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
