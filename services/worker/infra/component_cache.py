"""The host tier: components in main memory, bounded in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from services.worker.infra.packed_components import Layouts, PackedComponents, packed, packed_bytes
from services.worker.lora.pool.eviction import FrequencyEviction
from services.worker.ports import ComponentSource, ComponentTierStats

_Key: TypeAlias = tuple[str, RocBasis]


class ComponentCache:
    """A `ComponentSource` that remembers what another one gave. May be called from any thread.

    Args:
        source: what is asked on a miss.
        capacity_bytes: of tensor data; an adapter larger than this passes through.
        dtype: what components are kept in: the model's, so that a device in half precision does not have twice its size
            in main memory; None keeps the type they come in.
        is_current: whether an adapter is still in the catalogue; one that is not passes through. Must be false before
            `forget` is called.
    """

    def __init__(
        self,
        source: ComponentSource,
        *,
        capacity_bytes: int,
        dtype: torch.dtype | None = None,
        is_current: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._source = source
        self._capacity_bytes = capacity_bytes
        self._dtype = dtype
        self._is_current = is_current
        self._adapters: dict[_Key, PackedComponents] = {}
        self._layouts = Layouts()
        self._eviction = FrequencyEviction()
        self._used_bytes = 0
        self._num_hits = 0
        self._num_misses = 0
        self._num_evictions = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._used_bytes

    def stats(self) -> ComponentTierStats:
        """Bytes and totals now."""
        with self._lock:
            return ComponentTierStats(
                capacity_bytes=self._capacity_bytes,
                used_bytes=self._used_bytes,
                num_adapters=len(self._adapters),
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_evictions=self._num_evictions,
            )

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`."""
        key = (adapter_id, basis)
        with self._lock:
            held = self._adapters.get(key)
            if held is None:
                self._num_misses += 1
            else:
                self._num_hits += 1
                self._eviction.mark_used(key)
        if held is not None:
            return held.unpacked()
        # Outside the lock: one slow download must not keep the others waiting.
        adapter = self._source.fetch(adapter_id, basis)
        if packed_bytes(adapter, self._dtype) > self._capacity_bytes:
            return adapter
        components = packed(adapter, self._dtype)
        with self._lock:
            self._keep(key, components)
        return components.unpacked()

    def forget(self, adapter_id: str) -> int:
        """Drop an adapter that left the catalogue; returns the bytes."""
        with self._lock:
            before = self._used_bytes
            for key in [(adapter_id, basis) for basis in RocBasis]:
                self._drop(key)
                self._eviction.forget(key)
            return before - self._used_bytes

    def check_integrity(self) -> None:
        """AssertionError unless the accounts agree."""
        with self._lock:
            assert self._used_bytes == sum(held.num_bytes for held in self._adapters.values()), "bytes disagree"
            assert self._used_bytes <= self._capacity_bytes, "more bytes than the cache may hold"

    def _keep(self, key: _Key, components: PackedComponents) -> None:
        # Asked with the lock held: whoever removes the adapter from the catalogue comes here afterwards.
        if not self._is_current(key[0]):
            return
        # Not before: what fails, is too large or has left would count as held for ever.
        self._eviction.mark_used(key)
        if key in self._adapters:
            return
        for victim in self._eviction.by_value(self._adapters) if self._must_evict(components) else ():
            self._drop(victim)
            self._eviction.mark_evicted(victim)
            self._num_evictions += 1
            if not self._must_evict(components):
                break
        self._adapters[key] = components.sharing(self._layouts)
        self._used_bytes += components.num_bytes

    def _must_evict(self, components: PackedComponents) -> bool:
        return self._used_bytes + components.num_bytes > self._capacity_bytes

    def _drop(self, key: _Key) -> None:
        held = self._adapters.pop(key, None)
        if held is not None:
            self._used_bytes -= held.num_bytes
