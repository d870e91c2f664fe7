"""Rank-one components on the device: who owns which rows, who refers to whom, and what it costs.

A ROC occupies one row of an arena in each module that has it, and nothing else: an adapter costs exactly the bytes of
its components, and any mixture of ranks and target modules can fill the budget.

An adapter is *reserved* (its rows are being written), then *committed*. References keep it; without references it may
be evicted when room is needed, unless it is pinned. All methods may be called from any thread, except that tensors are
replaced by `try_acquire`, which therefore belongs to the thread that runs the steps.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch

from hilora.adapter import DecomposedAdapter
from hilora.errors import RocPoolFull
from services.worker.lora.pool.eviction import EvictionPolicy, FrequencyEviction
from services.worker.lora.pool.pool_entries import PoolEntries, PoolEntry, RocKey
from services.worker.lora.pool.pool_stats import FreedBytes, RocPoolStats
from services.worker.lora.pool.roc_arena import (
    ArenaStrategy,
    ComponentSizes,
    ModuleShape,
    RocArena,
    RocArenas,
    RowMoves,
)
from services.worker.lora.pool.row_table import RowTable

_MAX_RETIRED_IDS = 4096
"""Adapters that are known to have left the catalogue; requests accepted before may still bring them in."""
_MAX_SLACK = 2
"""After retirements, memory may be this many times what is used."""


class RocPool:
    """The pool of one model.

    Args:
        modules: the linear layers of the model; their order gives the module indices.
        capacity_bytes: device memory for ROCs.
        dtype: of the rows: the model's.
        device: the model's.
        strategy: how arenas get their rows; None chooses by device.
        eviction: which adapter leaves first; by default the least frequently used.
    """

    def __init__(
        self,
        *,
        modules: Sequence[ModuleShape],
        capacity_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        strategy: ArenaStrategy | None = None,
        eviction: EvictionPolicy[RocKey] | None = None,
    ) -> None:
        self._arenas = RocArenas(
            modules=modules, capacity_bytes=capacity_bytes, dtype=dtype, device=device, strategy=strategy
        )
        self._capacity_bytes = capacity_bytes
        self._eviction: EvictionPolicy[RocKey] = FrequencyEviction() if eviction is None else eviction
        self._entries = PoolEntries()
        self._draining: frozenset[RocKey] = frozenset()
        self._retired_ids: dict[str, None] = {}
        self._is_trim_due = False
        self._layout_version = 0
        self._num_placements = 0
        self._num_changes = 0
        self._num_hits = 0
        self._num_misses = 0
        self._num_evictions = 0
        self._num_loads = 0
        self._lock = threading.RLock()

    @property
    def capacity_bytes(self) -> int:
        """Bytes that ROCs may occupy."""
        return self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that reserved and committed ROCs occupy."""
        return self._entries.used_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of memory that are really spent, on ROCs and on free rows; at most the capacity."""
        return self._arenas.reserved_bytes

    @property
    def layout_version(self) -> int:
        """Grows whenever a row may have changed its meaning, or an arena its tensors."""
        return self._layout_version

    @property
    def num_changes(self) -> int:
        """Grows whenever an acquisition that was refused might succeed."""
        return self._num_changes

    @property
    def num_modules(self) -> int:
        """Number of linear layers."""
        return self._arenas.num_modules

    def stats(self) -> RocPoolStats:
        """Bytes and totals now."""
        with self._lock:
            return RocPoolStats(
                capacity_bytes=self._capacity_bytes,
                used_bytes=self._entries.used_bytes,
                reserved_bytes=self._arenas.reserved_bytes,
                pinned_bytes=self._entries.pinned_bytes(),
                table_bytes=self._entries.table_bytes,
                num_adapters=len(self._entries),
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_loads=self._num_loads,
                num_evictions=self._num_evictions,
            )

    def resident_keys(self) -> tuple[RocKey, ...]:
        """Committed adapters."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.is_committed)

    def sizes_of(self, adapter: DecomposedAdapter, *, adapter_id: str) -> ComponentSizes:
        """What the adapter will occupy. Raises AdapterShapeMismatch if it does not fit the model."""
        return self._arenas.sizes_of(adapter, adapter_id=adapter_id)

    def try_acquire(self, keys: Sequence[RocKey], missing: Mapping[RocKey, ComponentSizes]) -> bool:
        """Take one reference on each key, all or none, reserving rows for those in `missing` that are not there.

        All or none, so that requests never wait for one another while each holds a part of the pool. To be called
        between steps: the tensors of an arena may be replaced.

        Args:
            keys: distinct keys; each is resident, reserved, or in `missing`.
            missing: sizes of keys that may not be there.

        Returns:
            False if there is no room now, or a key is neither there nor in `missing`, or is being drained.

        Raises:
            RocPoolFull: `plan_exceeds_roc_pool`: the keys would not fit a pool with nothing but what is pinned;
                `device_memory_full`: the device cannot give what the pool may have.
        """
        with self._lock:
            absent = [key for key in keys if key not in self._entries]
            if any(key not in missing for key in absent):
                return False
            self._refuse_impossible(keys, missing)
            if not self._draining.isdisjoint(keys):
                return False
            there = [key for key in keys if key not in absent]
            # References first, so that a plan never evicts its own adapters.
            for key in there:
                self._refer(key, 1)
            has_room = False
            try:
                has_room = self._make_room([missing[key] for key in absent])
            finally:
                for key in there if not has_room else ():
                    self._refer(key, -1)
            if not has_room:
                return False
            for key in absent:
                self._reserve(key, missing[key])
            for key in keys:
                self._eviction.mark_used(key)
            return True

    @property
    def is_draining(self) -> bool:
        """Whether adapters are kept from new requests."""
        return bool(self._draining)

    def drain(self, keys: Sequence[RocKey], missing: Mapping[RocKey, ComponentSizes]) -> None:
        """From now on, take no new references on as many other adapters as `keys` need to leave. Requests that hold
        them finish; then there is room. Replaces what was drained before."""
        with self._lock:
            num_bytes = self._entries.used_bytes - self._capacity_bytes
            num_bytes += sum(missing[key].num_bytes for key in keys if key not in self._entries)
            self._draining = self._entries.soonest_free(num_bytes, self._eviction, without=keys)

    def stop_draining(self) -> None:
        """Take new references on everything again."""
        with self._lock:
            if self._draining:
                self._draining = frozenset()
                self._num_changes += 1

    def write(self, key: RocKey, adapter: DecomposedAdapter) -> None:
        """Copy components into reserved rows. Off the step loop: no plan refers to these rows yet."""
        with self._lock:
            rows = self._entries[key].rows
        # Without the lock: nothing is moved while an adapter is reserved and not committed.
        self._arenas.write(rows, adapter)

    def commit(self, key: RocKey) -> None:
        """Declare a reserved adapter's rows written."""
        with self._lock:
            entry = self._entries[key]
            entry.is_committed = True
            self._num_loads += 1
            self._num_changes += 1
            self._settle(key)

    def is_committed(self, keys: Sequence[RocKey]) -> bool:
        """Whether all keys are resident and written."""
        with self._lock:
            return all(key in self._entries and self._entries[key].is_committed for key in keys)

    def count_lookup(self, keys: Sequence[RocKey]) -> None:
        """Count which of a new request's adapters are there."""
        with self._lock:
            num_hits = sum(key in self._entries for key in keys)
            self._num_hits += num_hits
            self._num_misses += len(keys) - num_hits

    def is_known(self, key: RocKey) -> bool:
        """Whether the key is resident or reserved."""
        with self._lock:
            return key in self._entries

    def release(self, keys: Sequence[RocKey]) -> None:
        """Give back one reference on each key."""
        with self._lock:
            for key in keys:
                entry = self._entries[key]
                assert entry.num_references > 0, f"{key} was released more often than acquired"
                self._num_changes += 1
                self._refer(key, -1)

    def abandon(self, key: RocKey) -> None:
        """Give up a reservation whose write failed, whoever refers to it."""
        with self._lock:
            self._drop(key, is_gone=True)

    def pin(self, key: RocKey, *, is_pinned: bool = True) -> None:
        """Keep a resident adapter whatever else needs room, or stop doing so. A retired one is not kept."""
        with self._lock:
            entry = self._entries[key]
            entry.is_pinned = is_pinned and not entry.is_retired
            # The victims were chosen when this adapter counted otherwise.
            self.stop_draining()
            self._num_changes += 1
            self._settle(key)

    def retire(self, adapter_id: str) -> FreedBytes:
        """Free an adapter's rows, at once or when its last request ends, and give their memory back to the system where
        rows can be. Requests that bring the adapter in later, because they were accepted before, do not keep it
        either."""
        with self._lock:
            self._retired_ids[adapter_id] = None
            while len(self._retired_ids) > _MAX_RETIRED_IDS:
                del self._retired_ids[next(iter(self._retired_ids))]
            before, later = self._entries.used_bytes, 0
            for key, entry in [item for item in self._entries.items() if item[0].adapter_id == adapter_id]:
                entry.is_retired = True
                entry.is_pinned = False
                self._settle(key)
                later += entry.num_bytes if key in self._entries else 0
            return FreedBytes(now=before - self._entries.used_bytes, later=later)

    def readmit(self, adapter_id: str) -> None:
        """A retired adapter is in the catalogue again."""
        with self._lock:
            self._retired_ids.pop(adapter_id, None)
            for key, entry in self._entries.items():
                if key.adapter_id == adapter_id:
                    entry.is_retired = False

    def trim(self) -> None:
        """After retirements, replace tensors that have become much too tall. To be called between steps."""
        with self._lock:
            if not self._is_trim_due or self._entries.is_writing:
                return
            self._is_trim_due = False
            if self._arenas.reserved_bytes > _MAX_SLACK * self.used_bytes:
                moves = self._arenas.compact()
                if moves is not None:
                    self._rearrange(moves)

    def rows(self, key: RocKey) -> RowTable:
        """Rows of a committed adapter in each module's arena. Modules of one shape share an arena, so that rows differ
        by module."""
        return self._entries[key].rows

    def placement(self, key: RocKey) -> int:
        """A number that the adapter keeps while its rows stay as they are, in tensors that stay as they are; no two
        stays have the same. What is derived from some adapters' rows is good while their placements are."""
        return self._entries[key].placement

    def module_ranks(self, key: RocKey) -> tuple[int, ...]:
        """ROCs of a committed adapter by module index."""
        return self._entries[key].rows.layout.module_ranks

    def arena(self, module_idx: int) -> RocArena:
        """The rows that a module's components are among. Its tensors may be others after `try_acquire`."""
        return self._arenas.arena(module_idx)

    def num_references(self, key: RocKey) -> int:
        """Requests that refer to a key; 0 if it is not there."""
        with self._lock:
            entry = self._entries.get(key)
            return 0 if entry is None else entry.num_references

    def check_integrity(self) -> None:
        """AssertionError unless every row is free, or owned once, and the accounts agree."""
        with self._lock:
            self._entries.check_integrity()
            self._arenas.check_integrity([entry.rows for entry in self._entries.values()])
            assert self.used_bytes <= self._arenas.reserved_bytes <= self._capacity_bytes, "bytes out of order"

    def _refuse_impossible(self, keys: Sequence[RocKey], missing: Mapping[RocKey, ComponentSizes]) -> None:
        num_bytes = sum(
            missing[key].num_bytes if (entry := self._entries.get(key)) is None else entry.num_bytes for key in keys
        )
        pinned_bytes = self._entries.pinned_bytes(without=keys)
        if num_bytes > self._capacity_bytes - pinned_bytes:
            raise RocPoolFull(
                f"The plan's {len(keys)} adapters need {num_bytes} bytes; the whole pool has {self._capacity_bytes}, "
                f"of which {pinned_bytes} are pinned for others.",
                code="plan_exceeds_roc_pool",
                remedy="Raise HILORA_WORKER_ROC_POOL_BYTES, or lower the router's number of candidates.",
            )

    def _make_room(self, sizes: Sequence[ComponentSizes]) -> bool:
        if not sizes:
            return True
        num_bytes = sum(size.num_bytes for size in sizes)
        if self.used_bytes - self._entries.evictable_bytes + num_bytes > self._capacity_bytes:
            return False
        victims = self._entries.victims(self.used_bytes + num_bytes - self._capacity_bytes, self._eviction)
        rows_C = self._arenas.rows_by_arena(size.module_ranks for size in sizes)
        freed_C = self._arenas.rows_by_arena(self.module_ranks(victim) for victim in victims)
        if self._entries.is_writing and self._arenas.must_replace(rows_C - freed_C):
            # A loader thread is writing to the tensors of now; its end is a change, and this is tried again. Nobody is
            # evicted before that, as until then it would be for nothing.
            return False
        for victim in victims:
            self._drop(victim, is_gone=False)
            self._num_evictions += 1
        if self._arenas.must_replace(rows_C):
            moves: RowMoves | None = None
            try:
                moves = self._arenas.replace(rows_C)
            finally:
                # Also when memory runs out halfway: some tensors are others by then.
                self._rearrange(moves)
        return True

    def _rearrange(self, moves: RowMoves | None) -> None:
        """Enter that tensors were replaced and, perhaps, rows moved."""
        self._layout_version += 1
        for entry in self._entries.values():
            if moves is not None:
                entry.rows = self._arenas.moved(entry.rows, moves)
            entry.placement = self._new_placement()

    def _reserve(self, key: RocKey, sizes: ComponentSizes) -> None:
        entry = PoolEntry(
            rows=self._arenas.take(sizes),
            num_bytes=sizes.num_bytes,
            placement=self._new_placement(),
            num_references=1,
            is_retired=key.adapter_id in self._retired_ids,
        )
        self._entries.add(key, entry)

    def _refer(self, key: RocKey, difference: int) -> None:
        self._entries[key].num_references += difference
        self._settle(key)

    def _settle(self, key: RocKey) -> None:
        """Bring the books up to date after a change of an entry, and drop it if it was to go."""
        self._entries.note(key)
        entry = self._entries[key]
        if entry.is_evictable and entry.is_retired:
            self._drop(key, is_gone=True)

    def _drop(self, key: RocKey, *, is_gone: bool) -> None:
        entry = self._entries.pop(key)
        # Whoever makes room needs these rows at once; a retirement is meant to make the process smaller.
        self._arenas.give_back(entry.rows, must_discard=is_gone)
        (self._eviction.forget if is_gone else self._eviction.mark_evicted)(key)
        self._is_trim_due = self._is_trim_due or is_gone
        self._layout_version += 1
        self._num_changes += 1

    def _new_placement(self) -> int:
        self._num_placements += 1
        return self._num_placements
