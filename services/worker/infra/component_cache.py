"""The host tier: components in main memory, least recently used out first, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from hilora.adapter import DecomposedAdapter, RocBasis
from services.worker.ports import ComponentSource


class ComponentCache:
    """A `ComponentSource` that remembers what another one gave. May be called from any thread.

    Args:
        source: what is asked on a miss.
        capacity_bytes: of tensor data; an adapter larger than this passes through.
    """

    def __init__(self, source: ComponentSource, *, capacity_bytes: int) -> None:
        self._source = source
        self._capacity_bytes = capacity_bytes
        self._adapters: OrderedDict[tuple[str, RocBasis], DecomposedAdapter] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """Bytes held now."""
        return self._used_bytes

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`."""
        key = (adapter_id, basis)
        with self._lock:
            adapter = self._adapters.get(key)
            if adapter is not None:
                self._adapters.move_to_end(key)
                return adapter
        # Outside the lock: one slow download must not keep the others waiting.
        adapter = self._source.fetch(adapter_id, basis)
        with self._lock:
            self._keep(key, adapter)
        return adapter

    def forget(self, adapter_id: str) -> None:
        """Drop an adapter that left the catalogue."""
        with self._lock:
            for key in [key for key in self._adapters if key[0] == adapter_id]:
                self._used_bytes -= _num_bytes(self._adapters.pop(key))

    def _keep(self, key: tuple[str, RocBasis], adapter: DecomposedAdapter) -> None:
        if key in self._adapters or _num_bytes(adapter) > self._capacity_bytes:
            return
        self._adapters[key] = adapter
        self._used_bytes += _num_bytes(adapter)
        while self._used_bytes > self._capacity_bytes:
            _, oldest = self._adapters.popitem(last=False)
            self._used_bytes -= _num_bytes(oldest)


def _num_bytes(adapter: DecomposedAdapter) -> int:
    return sum(rocs.a_RD.nbytes + rocs.b_RO.nbytes for rocs in adapter.modules.values())
