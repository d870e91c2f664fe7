"""Where components come from in tests of the worker: no registry, no sockets."""

from __future__ import annotations

import threading

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import UnknownAdapter
from tests.builders.patience import patient


class InMemoryComponentSource:
    """Adapters by id; `gate` holds fetches back until it is set, `faults` makes them fail."""

    def __init__(self, adapters: dict[str, DecomposedAdapter] | None = None) -> None:
        self.adapters = dict(adapters or {})
        self.faults: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.num_fetches = 0

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        self.num_fetches += 1
        assert self.gate.wait(timeout=patient(30))
        if adapter_id in self.faults:
            raise self.faults[adapter_id]
        if adapter_id not in self.adapters:
            raise UnknownAdapter(f"No adapter {adapter_id}.")
        return self.adapters[adapter_id]
