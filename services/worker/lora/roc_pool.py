"""Rank-one components on the device: one pool of rows, shared by adapters of any rank.

Shapes: N rows of the pool, D in-features, O out-features of a module.

A ROC occupies one row id, the same in every module: row `j` of `a [N, D]` and of `b [N, O]`. An adapter of rank r takes
r row ids from the free list, wherever they are, so that ranks need no padding and a plan is a list of row ids. Arenas
are created when the first adapter targets their module. Row 0 is never given away and stays zero: tables pad with it.

An adapter is *reserved* (its rows are being written), then *committed*. References keep it; without references it may
be evicted when room is needed, unless it is pinned. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import AdapterShapeMismatch, RocPoolFull
from services.worker.lora.eviction import LruEviction


class RocKey(NamedTuple):
    """What is resident or not: one adapter version in one basis."""

    adapter_id: str
    basis: RocBasis


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleShape:
    """A linear layer that ROCs can be added to."""

    module_path: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RocArena:
    """The rows of one module."""

    a_ND: torch.Tensor
    b_NO: torch.Tensor
    b_norms_N: torch.Tensor
    """Euclidean norm of each row of `b`, for the contribution score."""


@dataclass(kw_only=True, slots=True)
class _Entry:
    rows: tuple[int, ...]
    module_ranks: tuple[int, ...]
    """ROCs in each module, by module index; 0 where the adapter has none."""
    num_bytes: int
    num_references: int = 0
    is_committed: bool = False
    is_pinned: bool = False
    is_retired: bool = False
    """To be freed as soon as nothing refers to it."""

    @property
    def is_evictable(self) -> bool:
        return self.is_committed and self.num_references == 0 and not self.is_pinned


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentSizes:
    """What an adapter's components will occupy."""

    num_rows: int
    num_bytes: int
    module_ranks: tuple[int, ...]


class RocPool:
    """The pool of one model.

    Args:
        modules: the linear layers of the model; their order gives the module indices.
        capacity_bytes: device memory for ROCs.
        dtype: of the rows: the model's.
        device: the model's.
    """

    def __init__(
        self, *, modules: Sequence[ModuleShape], capacity_bytes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if not modules:
            raise ValueError("a pool needs at least one module")
        self._modules = tuple(modules)
        self._module_idx = {shape.module_path: idx for idx, shape in enumerate(self._modules)}
        self._dtype = dtype
        self._device = device
        self._itemsize = torch.empty((), dtype=dtype).element_size()
        self._capacity_bytes = capacity_bytes
        # The narrowest module bounds how many rows the bytes could ever hold, but an arena of that height would waste
        # memory on the wide ones: a row is budgeted as a ROC in all modules but the widest (the output embedding).
        sizes = sorted(self._row_bytes(shape) for shape in self._modules)
        self._num_rows = max(1, capacity_bytes // (sum(sizes[:-1]) or sizes[-1]))
        self._arenas: list[RocArena | None] = [None] * len(self._modules)
        self._free_rows = list(range(self._num_rows, 0, -1))
        self._entries: dict[RocKey, _Entry] = {}
        self._eviction: LruEviction[RocKey] = LruEviction()
        self._used_bytes = 0
        self._num_evictions = 0
        self._lock = threading.RLock()

    @property
    def capacity_bytes(self) -> int:
        """Bytes that ROCs may occupy."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that reserved and committed ROCs occupy."""
        return self._used_bytes

    @property
    def layout_version(self) -> int:
        """Grows whenever a row id may have changed its meaning; part of the key of everything derived from rows."""
        return self._num_evictions

    @property
    def num_modules(self) -> int:
        """Number of linear layers."""
        return len(self._modules)

    def resident_keys(self) -> tuple[RocKey, ...]:
        """Committed adapters."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.is_committed)

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
                    f"{adapter_id} targets {module_path}, which the base model does not have as a linear layer.",
                    code="unknown_target_module",
                    remedy="Register the adapter against the base model that this worker serves.",
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
            num_bytes += rocs.num_rocs * self._row_bytes(shape)
        return ComponentSizes(num_rows=max(ranks), num_bytes=num_bytes, module_ranks=tuple(ranks))

    def try_acquire(self, keys: Sequence[RocKey], missing: Mapping[RocKey, ComponentSizes]) -> bool:
        """Take one reference on each key, all or none, reserving rows for those in `missing` that are not there.

        All or none, so that requests never wait for one another while each holds a part of the pool.

        Args:
            keys: distinct keys; each is resident, reserved, or in `missing`.
            missing: sizes of keys that may not be there.

        Returns:
            False if there is no room now, or a key is neither there nor in `missing`.

        Raises:
            RocPoolFull: `plan_exceeds_roc_pool`: the keys would not fit an empty pool.
        """
        with self._lock:
            absent = [key for key in keys if key not in self._entries]
            if any(key not in missing for key in absent):
                return False
            self._refuse_impossible(keys, missing)
            wanted = {key: entry for key in keys if (entry := self._entries.get(key)) is not None}
            for entry in wanted.values():
                entry.num_references += 1
            if not self._make_room([missing[key] for key in absent]):
                for key in wanted:
                    self.release([key], mark_used=False)
                return False
            for key in absent:
                self._reserve(key, missing[key])
            for key in keys:
                self._eviction.mark_used(key)
            return True

    def write(self, key: RocKey, adapter: DecomposedAdapter) -> None:
        """Copy components into reserved rows. Off the step loop: no plan refers to these rows yet."""
        with self._lock:
            entry = self._entries[key]
            arenas = {path: self._arena(self._module_idx[path]) for path in adapter.modules}
        rows = torch.tensor(entry.rows, dtype=torch.int64, device=self._device)
        for module_path, rocs in adapter.modules.items():
            arena = arenas[module_path]
            index = rows[: rocs.num_rocs]
            a_RD = rocs.a_RD.to(device=self._device, dtype=self._dtype)
            b_RO = rocs.b_RO.to(device=self._device, dtype=self._dtype)
            arena.a_ND.index_copy_(0, index, a_RD)
            arena.b_NO.index_copy_(0, index, b_RO)
            arena.b_norms_N.index_copy_(0, index, rocs.b_RO.norm(dim=1).to(device=self._device, dtype=self._dtype))

    def commit(self, key: RocKey) -> None:
        """Declare a reserved adapter's rows written."""
        with self._lock:
            self._entries[key].is_committed = True

    def is_committed(self, keys: Sequence[RocKey]) -> bool:
        """Whether all keys are resident and written."""
        with self._lock:
            return all(key in self._entries and self._entries[key].is_committed for key in keys)

    def is_known(self, key: RocKey) -> bool:
        """Whether the key is resident or reserved."""
        with self._lock:
            return key in self._entries

    def release(self, keys: Sequence[RocKey], *, mark_used: bool = True) -> None:
        """Give back one reference on each key."""
        with self._lock:
            for key in keys:
                entry = self._entries[key]
                assert entry.num_references > 0, f"{key} was released more often than acquired"
                entry.num_references -= 1
                if entry.is_retired and entry.is_evictable:
                    self._drop(key)
                elif mark_used:
                    self._eviction.mark_used(key)

    def abandon(self, key: RocKey) -> None:
        """Give up a reservation whose write failed, whoever refers to it."""
        with self._lock:
            self._drop(key)

    def pin(self, key: RocKey, *, is_pinned: bool = True) -> None:
        """Keep a resident adapter whatever else needs room, or stop doing so."""
        with self._lock:
            self._entries[key].is_pinned = is_pinned

    def retire(self, adapter_id: str) -> int:
        """Free an adapter's rows, at once or when its last request ends. Returns the bytes freed at once."""
        with self._lock:
            before = self._used_bytes
            for key, entry in list(self._entries.items()):
                if key.adapter_id != adapter_id:
                    continue
                entry.is_retired = True
                entry.is_pinned = False
                if entry.is_evictable:
                    self._drop(key)
            return before - self._used_bytes

    def rows(self, key: RocKey) -> tuple[int, ...]:
        """Row ids of a committed adapter; a module of rank r uses the first r of them."""
        return self._entries[key].rows

    def module_ranks(self, key: RocKey) -> tuple[int, ...]:
        """ROCs of a committed adapter by module index."""
        return self._entries[key].module_ranks

    def arena(self, module_idx: int) -> RocArena:
        """The rows of a module that a committed adapter targets."""
        arena = self._arenas[module_idx]
        assert arena is not None, "no adapter targets this module"
        return arena

    def check_integrity(self) -> None:
        """AssertionError unless every row is free, or owned once, and the accounts agree."""
        with self._lock:
            owned = [row for entry in self._entries.values() for row in entry.rows]
            rows = sorted([*owned, *self._free_rows])
            assert rows == list(range(1, self._num_rows + 1)), "a row is lost or held twice"
            assert self._used_bytes == sum(entry.num_bytes for entry in self._entries.values()), "bytes disagree"
            assert self._used_bytes <= self._capacity_bytes, "more bytes than the pool may hold"
            assert all(entry.num_references >= 0 for entry in self._entries.values()), "a negative reference count"
            for arena in self._arenas:
                assert arena is None or not (arena.a_ND[0].any() or arena.b_NO[0].any()), "row 0 is not zero"

    def num_references(self, key: RocKey) -> int:
        """Requests that refer to a key; 0 if it is not there."""
        with self._lock:
            entry = self._entries.get(key)
            return 0 if entry is None else entry.num_references

    def _row_bytes(self, shape: ModuleShape) -> int:
        return (shape.in_features + shape.out_features + 1) * self._itemsize

    def _refuse_impossible(self, keys: Sequence[RocKey], missing: Mapping[RocKey, ComponentSizes]) -> None:
        num_rows = num_bytes = 0
        for key in keys:
            entry = self._entries.get(key)
            num_rows += missing[key].num_rows if entry is None else len(entry.rows)
            num_bytes += missing[key].num_bytes if entry is None else entry.num_bytes
        if num_rows > self._num_rows or num_bytes > self._capacity_bytes:
            raise RocPoolFull(
                f"The plan's {len(keys)} adapters need {num_bytes} bytes in {num_rows} rows; the whole pool has "
                f"{self._capacity_bytes} bytes in {self._num_rows} rows.",
                code="plan_exceeds_roc_pool",
                remedy="Raise HILORA_WORKER_ROC_POOL_BYTES, or lower the router's number of candidates.",
            )

    def _make_room(self, sizes: Sequence[ComponentSizes]) -> bool:
        num_rows = sum(size.num_rows for size in sizes)
        num_bytes = sum(size.num_bytes for size in sizes)
        spare = [entry for entry in self._entries.values() if entry.is_evictable]
        has_rows = len(self._free_rows) + sum(len(entry.rows) for entry in spare) >= num_rows
        has_bytes = self._used_bytes - sum(entry.num_bytes for entry in spare) + num_bytes <= self._capacity_bytes
        if not (has_rows and has_bytes):
            return False
        while len(self._free_rows) < num_rows or self._used_bytes + num_bytes > self._capacity_bytes:
            victim = self._eviction.select_victim(lambda key: self._entries[key].is_evictable)
            assert victim is not None, "the evictable entries were counted above"
            self._drop(victim)
        return True

    def _reserve(self, key: RocKey, sizes: ComponentSizes) -> None:
        rows = tuple(self._free_rows.pop() for _ in range(sizes.num_rows))
        self._entries[key] = _Entry(
            rows=rows, module_ranks=sizes.module_ranks, num_bytes=sizes.num_bytes, num_references=1
        )
        self._used_bytes += sizes.num_bytes

    def _drop(self, key: RocKey) -> None:
        entry = self._entries.pop(key)
        self._eviction.forget(key)
        self._free_rows.extend(reversed(entry.rows))
        self._used_bytes -= entry.num_bytes
        self._num_evictions += 1

    def _arena(self, module_idx: int) -> RocArena:
        arena = self._arenas[module_idx]
        if arena is None:
            shape = self._modules[module_idx]
            height = self._num_rows + 1
            # Not zeroed as a whole: on the CPU untouched rows then cost no memory.
            arena = RocArena(
                a_ND=torch.empty(height, shape.in_features, dtype=self._dtype, device=self._device),
                b_NO=torch.empty(height, shape.out_features, dtype=self._dtype, device=self._device),
                b_norms_N=torch.zeros(height, dtype=self._dtype, device=self._device),
            )
            arena.a_ND[0] = 0
            arena.b_NO[0] = 0
            self._arenas[module_idx] = arena
        return arena
