"""Rank-one components on the device: who owns which rows, who refers to whom, and what it costs.

A ROC occupies one row id, the same in every module's arena. An adapter of rank r takes r row ids from the free list,
wherever they are, so that ranks need no padding and a plan is a list of row ids. Row 0 is never given away.

An adapter is *reserved* (its rows are being written), then *committed*. References keep it; without references it may
be evicted when room is needed, unless it is pinned. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import RocPoolFull
from services.worker.lora.eviction import LruEviction
from services.worker.lora.roc_arena import ComponentSizes, ModuleShape, RocArena, RocArenas


class RocKey(NamedTuple):
    """What is resident or not: one adapter version in one basis."""

    adapter_id: str
    basis: RocBasis


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
        self._arenas = RocArenas(modules=modules, capacity_bytes=capacity_bytes, dtype=dtype, device=device)
        self._capacity_bytes = capacity_bytes
        self._num_rows = self._arenas.num_rows
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
        return self._arenas.num_modules

    def resident_keys(self) -> tuple[RocKey, ...]:
        """Committed adapters."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.is_committed)

    def sizes_of(self, adapter: DecomposedAdapter, *, adapter_id: str) -> ComponentSizes:
        """What the adapter will occupy. Raises AdapterShapeMismatch if it does not fit the model."""
        return self._arenas.sizes_of(adapter, adapter_id=adapter_id)

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
            rows = self._entries[key].rows
        self._arenas.write(rows, adapter)

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

    def rows(self, key: RocKey) -> np.ndarray:
        """Rows of a committed adapter in each module's arena, int64 `[M, R]`: `rows[m, j]` holds its j-th ROC in module
        m, row 0 where it has fewer there."""
        entry = self._entries[key]
        places = np.arange(len(entry.rows))
        return np.where(places < np.asarray(entry.module_ranks)[:, None], np.asarray(entry.rows), 0)

    def module_ranks(self, key: RocKey) -> tuple[int, ...]:
        """ROCs of a committed adapter by module index."""
        return self._entries[key].module_ranks

    def arena(self, module_idx: int) -> RocArena:
        """The rows of a module that a committed adapter targets."""
        return self._arenas.arena(module_idx)

    def check_integrity(self) -> None:
        """AssertionError unless every row is free, or owned once, and the accounts agree."""
        with self._lock:
            owned = [row for entry in self._entries.values() for row in entry.rows]
            rows = sorted([*owned, *self._free_rows])
            assert rows == list(range(1, self._num_rows + 1)), "a row is lost or held twice"
            assert self._used_bytes == sum(entry.num_bytes for entry in self._entries.values()), "bytes disagree"
            assert self._used_bytes <= self._capacity_bytes, "more bytes than the pool may hold"
            assert all(entry.num_references >= 0 for entry in self._entries.values()), "a negative reference count"
            self._arenas.check_integrity()

    def num_references(self, key: RocKey) -> int:
        """Requests that refer to a key; 0 if it is not there."""
        with self._lock:
            entry = self._entries.get(key)
            return 0 if entry is None else entry.num_references

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
