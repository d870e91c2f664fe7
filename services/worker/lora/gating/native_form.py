"""A step's ROC work as one call of the CPU kernel per linear layer.

Shapes: T rows of the step, D in-features, O out-features, K selected rows.

The kernel wants to know, besides the tables, which tokens use which adapter: it reads an adapter's rows once for all of
them. The work of that phase is cut into blocks of up to four rows by 64 tokens, which the threads share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from services.worker.kernels.native_ops import NativeTable
from services.worker.lora.gating.gate_tables import StepTable
from services.worker.lora.gating.torch_form import TokenGates
from services.worker.lora.pool.roc_pool import RocPool

_ROWS_PER_BLOCK = 4
"""The kernel's register tile."""
_USERS_PER_BLOCK = 64


_Shapes = tuple[tuple[int, int], tuple[int, int]]
"""Of a layer's input and output."""


class NativeSegment:
    """All rows of a step whose plans gate by components, decode tokens and prompt chunks alike."""

    def __init__(self, table: StepTable, pool: RocPool) -> None:
        self.rows = slice(0, table.num_tokens)
        self._table = table
        self._pool = pool
        self._plans = _PlanArrays(table, pool)
        tokens = _TokenArrays(table, table.token_plans)
        modules = [self._plans.module(module_idx) for module_idx in table.targets_N.tolist()]
        self._kernel = _kernel_table(self._plans, tokens, modules)
        self._layers = {
            module_idx: (table.place_of[module_idx], self._shapes(module_idx, table.num_tokens))
            for module_idx in table.targets_N.tolist()
        }
        self._selection: tuple[torch.Tensor, _TokenArrays] | None = None

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`.

        Raises:
            ValueError: rows, widths or types are not what the tables were made for: the kernel takes addresses.
        """
        layer = self._layers.get(module_idx)
        if layer is not None:
            _apply(self._kernel, *layer, x_TD, y_TO)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`. Indices beyond the segment are rows without ROCs."""
        if module_idx not in self._table.place_of:
            return
        # The projections of an expert are asked for one after another with one selection.
        if self._selection is None or self._selection[0] is not row_idx_K:
            self._selection = (row_idx_K, _TokenArrays(self._table, self._chosen_plans(row_idx_K.numpy())))
        kernel = _kernel_table(self._plans, self._selection[1], [self._plans.module(module_idx)])
        _apply(kernel, 0, self._shapes(module_idx, len(row_idx_K)), x_KD, y_KO)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        if module_idx in self._table.place_of:
            gates = TokenGates(self._table, self._pool, dtype=y_TO.dtype, device=y_TO.device)
            gates.add_embedding(module_idx, token_ids_T, y_TO)

    def _shapes(self, module_idx: int, num_rows: int) -> _Shapes:
        arena = self._pool.arena(module_idx)
        return ((num_rows, arena.a_ND.shape[1]), (num_rows, arena.b_NO.shape[1]))

    def _chosen_plans(self, row_idx_K: np.ndarray) -> np.ndarray:
        token_plans = self._table.token_plans
        is_own = row_idx_K < len(token_plans)
        return np.where(is_own, token_plans[np.where(is_own, row_idx_K, 0)], -1).astype(np.int32)


def _apply(kernel: Any, place: int, expected: _Shapes, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
    if (x_TD.shape, y_TO.shape) != expected or x_TD.dtype is not torch.float32 or y_TO.dtype is not torch.float32:
        raise ValueError(f"the step's tables are for float32 of {expected}, not {x_TD.shape} and {y_TO.shape}")
    x_stride, y_stride = x_TD.stride(), y_TO.stride()
    if x_stride[1] != 1:
        x_TD = x_TD.contiguous()
        x_stride = x_TD.stride()
    if y_stride[1] != 1:
        raise ValueError("the kernel adds to rows whose elements lie next to each other")
    kernel.apply(place, x_TD.data_ptr(), x_stride[0], y_TO.data_ptr(), y_stride[0])


class _PlanArrays:
    """What the kernel has to know of a step's plans and layers, whichever tokens use them."""

    def __init__(self, table: StepTable, pool: RocPool) -> None:
        self._table = table
        self._pool = pool
        budgets = [plan.budgets_MG[table.targets_N] for plan in table.plans]
        self._budgets_NG = np.ascontiguousarray(np.concatenate(budgets, axis=1))
        group_sizes = [size for plan in table.plans for size in plan.group_sizes]
        self.max_slots = max(group_sizes)
        self.arrays = (
            _starts([plan.num_slots for plan in table.plans]),
            _starts([len(plan.group_sizes) for plan in table.plans]),
            np.array([plan.is_by_norm for plan in table.plans], dtype=np.uint8),
            _starts(group_sizes),
            np.concatenate([table.columns_of(plan) for plan in table.plans]).astype(np.int32),
            np.concatenate([plan.factors_P for plan in table.plans]).astype(np.float32),
            _starts(table.ranks),
        )
        self.owners: dict[int, object] = {}
        """The arenas that addresses lead to, kept while this is: the pool may replace them by others."""

    def module(self, module_idx: int) -> tuple[int, int, int, int, int, int, int]:
        """Addresses and sizes of a layer that the step targets."""
        place = self._table.place_of[module_idx]
        arena = self._pool.arena(module_idx)
        self.owners[id(arena)] = arena
        return (
            arena.a_ND.data_ptr(),
            arena.b_NO.data_ptr(),
            arena.b_norms_N.data_ptr(),
            self._table.rows_NU.ctypes.data + place * self._table.rows_NU.strides[0],
            self._budgets_NG.ctypes.data + place * self._budgets_NG.strides[0],
            arena.a_ND.shape[1],
            arena.b_NO.shape[1],
        )


class _TokenArrays:
    """Which plan each token has, where its responses go, and how the shrink is shared among threads."""

    def __init__(self, table: StepTable, token_plans: np.ndarray) -> None:
        plan_sizes = np.array([plan.num_slots for plan in table.plans], dtype=np.int32)
        places = np.zeros(len(token_plans) + 1, dtype=np.int32)
        np.cumsum(np.where(token_plans >= 0, plan_sizes[token_plans], 0), out=places[1:])
        users, self.blocks = _shared_work(table, token_plans, places)
        self.arrays = (np.ascontiguousarray(token_plans, dtype=np.int32), places)
        self.users = users
        self.num_tokens, self.num_places = len(token_plans), int(places[-1])


def _kernel_table(plans: _PlanArrays, tokens: _TokenArrays, modules: list[Any]) -> Any:
    assert NativeTable is not None, "the kernel was not compiled"
    sizes = (tokens.num_tokens, tokens.num_places, plans.max_slots, len(tokens.blocks))
    arrays = (*tokens.arrays, *plans.arrays, *tokens.users, tokens.blocks)
    addresses = tuple(array.ctypes.data for array in arrays)
    return NativeTable(sizes, addresses, modules, torch.get_num_threads(), (tokens, plans))


def _shared_work(
    table: StepTable, token_plans: np.ndarray, places: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Who uses which adapter, and the blocks that the shrink is cut into."""
    tokens_of: dict[int, list[np.ndarray]] = {place: [] for place in range(len(table.keys))}
    places_of: dict[int, list[np.ndarray]] = {place: [] for place in range(len(table.keys))}
    number = {key: place for place, key in enumerate(table.keys)}
    order = np.argsort(token_plans, kind="stable")
    bounds = np.searchsorted(token_plans[order], np.arange(len(table.plans) + 1))
    for plan_idx, plan in enumerate(table.plans):
        tokens = order[bounds[plan_idx] : bounds[plan_idx + 1]].astype(np.int32)
        first_slot = 0
        for key, rank in zip(plan.keys, plan.ranks, strict=True):
            tokens_of[number[key]].append(tokens)
            places_of[number[key]].append(places[tokens] + np.int32(first_slot))
            first_slot += rank
    blocks: list[tuple[int, int, int, int, int]] = []
    num_users = 0
    for place, rank in enumerate(table.ranks):
        stop = num_users + sum(map(len, tokens_of[place]))
        blocks.extend(
            (place, row, min(_ROWS_PER_BLOCK, rank - row), user, min(user + _USERS_PER_BLOCK, stop))
            for user in range(num_users, stop, _USERS_PER_BLOCK)
            for row in range(0, rank, _ROWS_PER_BLOCK)
        )
        num_users = stop
    users = (_joined(tokens_of), _joined(places_of))
    return users, np.array(blocks, dtype=np.int32).reshape(-1, 5)


def _joined(parts: dict[int, list[np.ndarray]]) -> np.ndarray:
    flat = [array for of_adapter in parts.values() for array in of_adapter]
    return np.ascontiguousarray(np.concatenate(flat), dtype=np.int32)


def _starts(sizes: Any) -> np.ndarray:
    return np.cumsum((0, *sizes)).astype(np.int32)
