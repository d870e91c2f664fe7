"""What a registry has said, in the shapes that a view of it and a fit want.

One change costs as much as one adapter, however many there are: requests share the loop with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hilora.access import AdapterAccess
from hilora.sequence_routing import AdapterProfile
from services.router.catalog import CatalogAdapter
from services.router.infra.catalog_entry import ReplicatedEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """What an entry of the registry means here."""

    adapter_name: str
    entry: ReplicatedEntry | None
    ignored: str | None
    """Why it cannot be used, or not be chosen."""


class CatalogContents:
    """The adapters of a catalogue.

    Args:
        arrivals: what a snapshot held.
    """

    def __init__(self, arrivals: Iterable[Arrival] = ()) -> None:
        self.entries: dict[str, ReplicatedEntry] = {}
        """By name."""
        self.adapters: dict[str, CatalogAdapter] = {}
        """The same without what places them."""
        self.profiles: dict[str, AdapterProfile] = {}
        """Of those that can be chosen."""
        self.ignored: dict[str, str] = {}
        """Why others cannot be used, or not be chosen."""
        self.moved: set[str] = set()
        """Names that came into `profiles` or left it, until somebody clears this."""
        self._num_under: Counter[AdapterAccess] = Counter()
        for arrival in arrivals:
            self.put(arrival)

    @property
    def rules(self) -> frozenset[AdapterAccess]:
        """Under which the adapters stand, each once."""
        return frozenset(self._num_under)

    def put(self, arrival: Arrival) -> None:
        """Replace what was known under this name. An older version under it is superseded by one that cannot be used:
        serving that on would hide the fault."""
        self._take_out(arrival.adapter_name)
        if arrival.ignored is not None:
            self.ignored[arrival.adapter_name] = arrival.ignored
        if arrival.entry is None:
            return
        entry = arrival.entry
        # The key is the string that the entry holds anyway.
        name = entry.adapter.adapter_name
        self.entries[name] = entry
        self.adapters[name] = entry.adapter
        self._num_under[entry.adapter.access] += 1
        if entry.profile is not None:
            self.profiles[name] = entry.profile
            self.moved.add(name)

    def remove(self, adapter_name: str) -> None:
        """Forget an adapter; one that is not known is none."""
        self._take_out(adapter_name)

    def _take_out(self, adapter_name: str) -> None:
        self.ignored.pop(adapter_name, None)
        adapter = self.adapters.pop(adapter_name, None)
        if adapter is None:
            return
        del self.entries[adapter_name]
        self._num_under[adapter.access] -= 1
        if not self._num_under[adapter.access]:
            del self._num_under[adapter.access]
        if self.profiles.pop(adapter_name, None) is not None:
            self.moved.add(adapter_name)
