"""What the worker needs of the world, as protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.learned_gate import LearnedGate
from hilora.plan_preparation import MergeRecipe


class ComponentSource(Protocol):
    """Where an adapter's rank-one components come from when they are not on the device."""

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """The components of one adapter version in one basis, in host memory.

        Blocks; called from loader threads, several at a time. The answer is shared: nobody writes to its tensors.

        Raises:
            UnknownAdapter: no such version.
            Unavailable: the source cannot be reached; trying again may help.
            InvalidAdapter: what came does not match what the catalogue promised.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentTierStats:
    """A tier of components below the device: bytes now, and totals since this process began."""

    capacity_bytes: int
    used_bytes: int
    num_adapters: int
    """Adapter versions that are there, each basis for itself."""
    num_hits: int
    num_misses: int
    num_evictions: int
    """Versions that had to leave for others."""
    num_damaged: int = 0
    """Files whose content was not what their name promises; they were removed."""


class AdapterMerger(Protocol):
    """A `ComponentSource` that also gives what is merged of others."""

    def announce(self, recipe: MergeRecipe) -> None:
        """From now on the merged adapter can be fetched. Cheap; nothing is merged yet."""
        ...

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`."""
        ...


class GateSource(Protocol):
    """Where learned gates come from."""

    def fetch(self, gate_id: str) -> LearnedGate:
        """One immutable version of a gate, in host memory. Blocks; called from threads that submit requests.

        Raises:
            UnknownAdapter: `unknown_gate`.
            InvalidInput: `invalid_gate`: what is stored under that id is not a gate.
        """
        ...


class CatalogView(Protocol):
    """The worker's replica of the catalogue of adapters."""

    @property
    def catalog_generation(self) -> int:
        """The generation the replica has reached; 0 before the first snapshot."""
        ...

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether that adapter version may be used by new requests."""
        ...

    async def wait_for_generation(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        """Wait until the replica is at that generation or above; False if the time ran out."""
        ...
