"""The books of the device tier: which adapters are there, what each costs, and which of them may leave.

Sums and sets are kept up to date rather than counted: a pool may hold thousands of adapters, and is asked about them in
every step while room is short. Not thread-safe: its owner holds the lock.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, ValuesView
from dataclasses import dataclass
from typing import NamedTuple

from hilora.adapter import RocBasis
from services.worker.lora.pool.eviction import EvictionPolicy
from services.worker.lora.pool.row_table import RowTable


class RocKey(NamedTuple):
    """What is resident or not: one adapter version in one basis."""

    adapter_id: str
    basis: RocBasis


@dataclass(kw_only=True, slots=True)
class PoolEntry:
    """One adapter on the device. Whoever changes it tells `PoolEntries.note`."""

    rows: RowTable
    num_bytes: int
    placement: int
    """See `RocPool.placement`."""
    num_references: int = 0
    is_committed: bool = False
    is_pinned: bool = False
    is_retired: bool = False
    """To be freed as soon as nothing refers to it."""

    @property
    def is_evictable(self) -> bool:
        """Whether it may leave when room is needed."""
        return self.is_committed and self.num_references == 0 and not self.is_pinned


class PoolEntries:
    """All adapters on the device."""

    def __init__(self) -> None:
        self._entries: dict[RocKey, PoolEntry] = {}
        self._evictable: dict[RocKey, None] = {}
        self._pinned: set[RocKey] = set()
        self._used_bytes = 0
        self._evictable_bytes = 0

    def __contains__(self, key: RocKey) -> bool:
        return key in self._entries

    def __getitem__(self, key: RocKey) -> PoolEntry:
        return self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: RocKey) -> PoolEntry | None:
        """The entry, if the adapter is there."""
        return self._entries.get(key)

    def items(self) -> ItemsView[RocKey, PoolEntry]:
        """All of them."""
        return self._entries.items()

    def values(self) -> ValuesView[PoolEntry]:
        """All of them, without keys."""
        return self._entries.values()

    @property
    def used_bytes(self) -> int:
        """Bytes of all of them."""
        return self._used_bytes

    @property
    def evictable_bytes(self) -> int:
        """Bytes of those that may leave."""
        return self._evictable_bytes

    @property
    def is_writing(self) -> bool:
        """Whether some are reserved and not committed."""
        return any(not entry.is_committed for entry in self._entries.values())

    @property
    def table_bytes(self) -> int:
        """Main memory of what says where their rows are."""
        tables = [entry.rows for entry in self._entries.values()]
        layouts = {id(table.layout): table.layout for table in tables}
        return sum(table.num_bytes for table in tables) + sum(layout.num_bytes for layout in layouts.values())

    def pinned_bytes(self, *, without: Collection[RocKey] = ()) -> int:
        """Bytes of those that are pinned."""
        return sum(self._entries[key].num_bytes for key in self._pinned if key not in without)

    def add(self, key: RocKey, entry: PoolEntry) -> None:
        """Enter an adapter."""
        self._entries[key] = entry
        self._used_bytes += entry.num_bytes
        self.note(key)

    def pop(self, key: RocKey) -> PoolEntry:
        """Strike an adapter out."""
        entry = self._entries.pop(key)
        self._used_bytes -= entry.num_bytes
        self._pinned.discard(key)
        if key in self._evictable:
            del self._evictable[key]
            self._evictable_bytes -= entry.num_bytes
        return entry

    def note(self, key: RocKey) -> None:
        """Bring the books up to date after a change of an entry."""
        entry = self._entries[key]
        if entry.is_pinned:
            self._pinned.add(key)
        else:
            self._pinned.discard(key)
        if entry.is_evictable and key not in self._evictable:
            self._evictable[key] = None
            self._evictable_bytes += entry.num_bytes
        elif not entry.is_evictable and key in self._evictable:
            del self._evictable[key]
            self._evictable_bytes -= entry.num_bytes

    def victims(self, num_bytes: int, policy: EvictionPolicy[RocKey]) -> list[RocKey]:
        """Those to evict for so many bytes, in the policy's order; all that may leave, if they are too few."""
        chosen: list[RocKey] = []
        for key in policy.by_value(self._evictable) if num_bytes > 0 else ():
            chosen.append(key)
            num_bytes -= self._entries[key].num_bytes
            if num_bytes <= 0:
                break
        return chosen

    def soonest_free(
        self, num_bytes: int, policy: EvictionPolicy[RocKey], *, without: Collection[RocKey]
    ) -> frozenset[RocKey]:
        """Adapters of so many bytes that will be free soonest: those that nobody uses, by the policy, then those with
        the fewest requests."""
        unused = [key for key in self._evictable if key not in without]
        held = {
            key: entry.num_references
            for key, entry in self._entries.items()
            if key not in self._evictable and key not in without and not entry.is_pinned
        }
        chosen: list[RocKey] = []
        for key in (*policy.by_value(unused), *sorted(policy.by_value(held.keys()), key=held.__getitem__)):
            if num_bytes <= 0:
                break
            chosen.append(key)
            num_bytes -= self._entries[key].num_bytes
        return frozenset(chosen)

    def check_integrity(self) -> None:
        """AssertionError unless sums and sets are what the entries say."""
        entries = self._entries
        assert self._used_bytes == sum(entry.num_bytes for entry in entries.values()), "bytes disagree"
        assert all(entry.num_references >= 0 for entry in entries.values()), "a negative reference count"
        assert self._evictable.keys() == {key for key, entry in entries.items() if entry.is_evictable}
        assert self._evictable_bytes == sum(entries[key].num_bytes for key in self._evictable)
        assert self._pinned == {key for key, entry in entries.items() if entry.is_pinned}
        assert not any(entries[key].is_retired for key in self._evictable), "a retired adapter stayed"
