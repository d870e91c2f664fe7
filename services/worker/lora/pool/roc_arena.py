"""The arenas of one model: rows for the components of any adapter, with nothing in them but components.

Layers of one shape share an arena, each component takes one row of it: a model has a handful of arenas whatever its
depth and its number of experts, adapters of any rank and any target modules use the same rows, and nothing is padded.

Shapes: M linear layers, P an adapter's components, C arenas, N rows of an arena, D in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from hilora.adapter import DecomposedAdapter
from hilora.errors import AdapterShapeMismatch, RocPoolFull
from services.worker.lora.pool.arena_storage import ArenaStorage, GrowingStorage, ReservedStorage, RocArena
from services.worker.lora.pool.row_allocator import RowAllocator
from services.worker.lora.pool.row_table import RankLayouts, RowTable

__all__ = ["ArenaStrategy", "ComponentSizes", "ModuleShape", "RocArena", "RocArenas", "RowMoves"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleShape:
    """A linear layer that ROCs can be added to."""

    module_path: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentSizes:
    """What an adapter's components occupy."""

    num_bytes: int
    """Of all their rows, norms included."""
    module_ranks: tuple[int, ...]
    """ROCs in each module, by module index; 0 where the adapter has none."""


class ArenaStrategy(StrEnum):
    """How arenas get their rows."""

    RESERVED = "reserved"
    """Address space at once, memory at the first write."""
    GROWING = "growing"
    """Tensors that are replaced by larger ones."""


RowMoves = Sequence[np.ndarray]
"""By arena, the new row of each old one."""


@dataclass(kw_only=True, slots=True)
class _ShapeArena:
    storage: ArenaStorage
    row_bytes: int
    rows: RowAllocator


class RocArenas:
    """The arenas of one model. Not thread-safe but for `arena` and `write`: its owner holds the lock.

    Args:
        modules: the linear layers of the model; their order gives the module indices.
        capacity_bytes: what all rows together may occupy.
        dtype: of the rows: the model's.
        device: the model's.
        strategy: None chooses: reserved in main memory, if the system grants the address space, growing elsewhere.
    """

    def __init__(
        self,
        *,
        modules: Sequence[ModuleShape],
        capacity_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        strategy: ArenaStrategy | None = None,
    ) -> None:
        if not modules:
            raise ValueError("a pool needs at least one module")
        self._modules = tuple(modules)
        self._module_idx = {shape.module_path: idx for idx, shape in enumerate(self._modules)}
        self._capacity_bytes = capacity_bytes
        self._dtype = dtype
        self._device = device
        shapes = list(dict.fromkeys((shape.in_features, shape.out_features) for shape in self._modules))
        self._arena_of_M = np.array([shapes.index((shape.in_features, shape.out_features)) for shape in self._modules])
        if strategy is None:
            strategy = ArenaStrategy.RESERVED if device.type == "cpu" else ArenaStrategy.GROWING
        self._strategy = strategy
        self._arenas = self._made(shapes)
        self._layouts = RankLayouts()

    @property
    def num_modules(self) -> int:
        """Number of linear layers."""
        return len(self._modules)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of memory behind rows, used or free; the zero row of each arena is not counted."""
        return sum(arena.storage.num_backed_rows * arena.row_bytes for arena in self._arenas)

    def arena(self, module_idx: int) -> RocArena:
        """The rows that a module's components are among."""
        return self._arenas[self._arena_of_M[module_idx]].storage.arena

    def sizes_of(self, adapter: DecomposedAdapter, *, adapter_id: str) -> ComponentSizes:
        """What the adapter will occupy.

        Raises:
            AdapterShapeMismatch: it does not fit the model: unknown module, or wrong widths.
        """
        ranks = [0] * len(self._modules)
        num_bytes = 0
        for module_path, rocs in adapter.modules.items():
            idx = self._module_idx.get(module_path)
            if idx is None:
                raise AdapterShapeMismatch(
                    f"{adapter_id} targets {module_path}, which is no layer of the base model that can carry a LoRA.",
                    code="unknown_target_module",
                    remedy="Register the adapter against the base model that this worker serves, on its linear layers "
                    "and word embeddings.",
                    place=module_path,
                )
            shape = self._modules[idx]
            found = (tuple(rocs.a_RD.shape), tuple(rocs.b_RO.shape))
            expected = ((rocs.num_rocs, shape.in_features), (rocs.num_rocs, shape.out_features))
            if found != expected:
                raise AdapterShapeMismatch(
                    f"{adapter_id} has components of shapes {found} for {module_path}, which needs {expected}.",
                    remedy="Register the adapter against the base model that this worker serves.",
                    place=module_path,
                )
            ranks[idx] = rocs.num_rocs
            num_bytes += rocs.num_rocs * self._arenas[self._arena_of_M[idx]].row_bytes
        return ComponentSizes(num_bytes=num_bytes, module_ranks=tuple(ranks))

    def rows_by_arena(self, module_ranks: Iterable[tuple[int, ...]]) -> np.ndarray:
        """Rows that adapters with so many components by module need of each arena, int64 `[C]`."""
        rows_C = np.zeros(len(self._arenas), dtype=np.int64)
        for ranks in module_ranks:
            np.add.at(rows_C, self._arena_of_M, np.asarray(ranks))
        return rows_C

    def must_replace(self, rows_C: np.ndarray) -> bool:
        """Whether handing out so many rows needs other tensors than there are now."""
        return any(
            arena.rows.height_with(num_rows) > arena.storage.height
            for arena, num_rows in zip(self._arenas, rows_C.tolist(), strict=True)
        )

    def replace(self, rows_C: np.ndarray) -> RowMoves | None:
        """Replace tensors so that so many rows can be handed out. Their bytes and those in use are within the capacity.
        Nobody may be reading or writing rows meanwhile.

        Returns:
            Where rows went to, if the space of some arena had to be given to another one; None: all rows stayed.

        Raises:
            RocPoolFull: `device_memory_full`: the device cannot give what the pool may have. Some tensors were
                replaced, all rows stayed.
        """
        needed = [
            max(arena.storage.height, arena.rows.height_with(num_rows))
            for arena, num_rows in zip(self._arenas, rows_C.tolist(), strict=True)
        ]
        spare_bytes = self._capacity_bytes - sum(
            (height - 1) * arena.row_bytes for arena, height in zip(self._arenas, needed, strict=True)
        )
        if spare_bytes < 0:
            return self.compact(rows_C)
        for arena, height in zip(self._arenas, needed, strict=True):
            if height > arena.storage.height:
                # Twice as much each time, so that all growth together copies a row once or twice.
                num_more = min(max(0, 2 * arena.storage.height - height), spare_bytes // arena.row_bytes)
                spare_bytes -= num_more * arena.row_bytes
                self._grow(arena.storage, height + num_more)
        return None

    def _grow(self, storage: ArenaStorage, height: int) -> None:
        try:
            storage.resize(height, None)
        except torch.OutOfMemoryError as error:
            raise RocPoolFull(
                f"The device has no memory for more components; the pool may take {self._capacity_bytes} bytes.",
                code="device_memory_full",
                remedy="Lower HILORA_WORKER_ROC_POOL_BYTES, or the memory for keys and values.",
            ) from error

    def compact(self, rows_C: np.ndarray | None = None) -> RowMoves | None:
        """Make arenas just high enough for what they hold and so many rows more. Nobody may be reading or writing rows
        meanwhile.

        Returns:
            Where rows went to; None where memory can be given back without that.
        """
        if self._strategy is ArenaStrategy.RESERVED:
            self.discard_free_rows()
            return None
        more = [0] * len(self._arenas) if rows_C is None else rows_C.tolist()
        moves: list[np.ndarray] = []
        for arena, num_rows in zip(self._arenas, more, strict=True):
            moves.append(arena.rows.compact())
            arena.storage.resize(arena.rows.height_with(num_rows), moves[-1])
        return moves

    def moved(self, table: RowTable, moves: RowMoves) -> RowTable:
        """An adapter's rows after a move."""
        arenas_P = table.by_component(self._arena_of_M)
        moved_P = np.empty_like(table.rows_P)
        for arena_idx, move in enumerate(moves):
            of_arena = arenas_P == arena_idx
            moved_P[of_arena] = move[table.rows_P[of_arena]]
        return RowTable.made(table.layout, moved_P)

    def take(self, sizes: ComponentSizes) -> RowTable:
        """Hand out an adapter's rows."""
        layout = self._layouts.of(sizes.module_ranks)
        arenas_P = np.repeat(self._arena_of_M, sizes.module_ranks)
        rows_P = np.empty(len(arenas_P), dtype=np.int64)
        for arena_idx, arena in enumerate(self._arenas):
            of_arena = arenas_P == arena_idx
            rows = arena.rows.take(int(of_arena.sum()))
            arena.storage.back(rows)
            rows_P[of_arena] = rows
        if self.reserved_bytes > self._capacity_bytes:
            self.discard_free_rows()
        return RowTable.made(layout, rows_P)

    def give_back(self, table: RowTable, *, must_discard: bool) -> None:
        """Take an adapter's rows back, and their memory if they are not to be used again soon."""
        arenas_P = table.by_component(self._arena_of_M)
        for arena_idx, arena in enumerate(self._arenas):
            rows = table.rows_P[arenas_P == arena_idx]
            arena.rows.give_back(rows)
            if must_discard:
                arena.storage.discard(np.sort(rows))

    def discard_free_rows(self) -> int:
        """Give the memory behind free rows back to the system, where rows can be; returns the bytes."""
        return sum(arena.storage.discard(arena.rows.free_rows) for arena in self._arenas)

    def write(self, table: RowTable, adapter: DecomposedAdapter) -> None:
        """Copy components into rows that nobody reads yet."""
        for arena_idx, arena in enumerate(self._arenas):
            idxs = [
                idx
                for idx in (self._module_idx[path] for path in adapter.modules)
                if self._arena_of_M[idx] == arena_idx
            ]
            if idxs:
                parts = [adapter.modules[self._modules[idx].module_path] for idx in idxs]
                arena.storage.write(np.concatenate([table.of_module(idx) for idx in idxs]), parts)

    def check_integrity(self, tables: Sequence[RowTable]) -> None:
        """AssertionError unless these rows and the free ones are all there are, and zero rows are zero.

        Args:
            tables: the rows of every adapter.
        """
        for arena_idx, arena in enumerate(self._arenas):
            used = [table.rows_P[table.by_component(self._arena_of_M) == arena_idx] for table in tables]
            arena.rows.check_integrity(np.concatenate([np.empty(0, dtype=np.int64), *used]))
            assert arena.rows.height <= arena.storage.height, "more rows than the arena has"
            tensors = arena.storage.arena
            for rows in (tensors.a_ND, tensors.b_NO, tensors.b_norms_N):
                assert not rows[0].any(), "row 0 is not zero"
        assert self.reserved_bytes <= self._capacity_bytes, "more memory than the pool may have"

    def _made(self, shapes: Sequence[tuple[int, int]]) -> list[_ShapeArena]:
        try:
            return [self._shape_arena(*shape) for shape in shapes]
        except OSError:
            # A limit on address space, not on memory: tensors that grow need no more than they use.
            self._strategy = ArenaStrategy.GROWING
            return [self._shape_arena(*shape) for shape in shapes]

    def _shape_arena(self, in_features: int, out_features: int) -> _ShapeArena:
        row_bytes = (in_features + out_features + 1) * self._dtype.itemsize
        storage: ArenaStorage
        if self._strategy is ArenaStrategy.RESERVED:
            storage = ReservedStorage(
                in_features=in_features,
                out_features=out_features,
                max_height=self._capacity_bytes // row_bytes + 1,
                dtype=self._dtype,
            )
        else:
            storage = GrowingStorage(
                in_features=in_features, out_features=out_features, dtype=self._dtype, device=self._device
            )
        return _ShapeArena(storage=storage, row_bytes=row_bytes, rows=RowAllocator())
