"""Compares a new adapter with the pool it comes into: is it one that is there already, is it of another size than all?

Both are said and neither is refused. The pool is remembered as a few numbers an adapter (`AdapterTraits`, kept in each
manifest); components are read only of an adapter whose numbers agree.

Another process may register an equal adapter while this one is worked on. So after its publication it is compared once
more, with what arrived since: of two equal ones, the later to be published sees the earlier, whoever made it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hilora.adapter import LoRAAdapter, RocBasis
from hilora.adapter_review import find_norm_outliers
from hilora.decomposition import recompose
from hilora.errors import UnknownAdapter
from hilora.finding import Finding, Severity
from hilora.fingerprint import SAME_UPDATE_TOLERANCE, AdapterTraits, may_be_same, relative_distance, traits_of
from services.registry.ports import ArtifactStore, PoolSource

_REFRESH_SECONDS = 30.0
"""Before publication, what other processes registered meanwhile may be unknown: reading the records for each of ten
thousand adapters would cost more than all the rest of their ingests."""
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolMember:
    """A registered adapter, as far as later ones are compared with it."""

    adapter_name: str
    revision: str
    source_sha256: str
    traits: AdapterTraits
    arrival: int
    """Counts what this process came to know of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An adapter's own traits, and what the pool says about them."""

    traits: AdapterTraits
    findings: tuple[Finding, ...]
    adapter: LoRAAdapter
    """As it is to be served."""
    adapter_name: str
    source_sha256: str
    last_arrival: int
    """The last member of the pool that it was compared with."""


class PoolCheck:
    """The memory of the pool in one ingest process. Blocking; threads wait for one another.

    Args:
        source: which versions are registered.
        artifacts: their manifests, and their components where those have to be compared.
    """

    def __init__(self, *, source: PoolSource, artifacts: ArtifactStore) -> None:
        self._source = source
        self._artifacts = artifacts
        self._known: dict[tuple[str, str], PoolMember | None] = {}
        self._read_at: float | None = None
        self._catalog_generation: int | None = None
        self._num_arrivals = 0
        self._lock = threading.Lock()

    def compare(self, adapter: LoRAAdapter, *, adapter_name: str, source_sha256: str) -> Comparison:
        """Traits and findings of an adapter that passed every other check.

        Args:
            adapter: as it is to be served.
            adapter_name: its name; other versions of the same name do not count.
            source_sha256: digest of its files as received.
        """
        traits = traits_of(adapter)
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at >= _REFRESH_SECONDS:
                self._refresh()
            last_arrival = self._num_arrivals
            others = self._others(adapter_name)
        findings = self._duplicates(adapter, traits, source_sha256, others)
        findings += find_norm_outliers(traits.norm_by_kind, [member.traits.norm_by_kind for member in others])
        return Comparison(
            traits=traits,
            findings=tuple(findings),
            adapter=adapter,
            adapter_name=adapter_name,
            source_sha256=source_sha256,
            last_arrival=last_arrival,
        )

    def compare_again(self, comparison: Comparison, *, revision: str, catalog_generation: int) -> tuple[Finding, ...]:
        """What is to be added once an adapter is published.

        Args:
            comparison: the one before.
            revision: what the name means now.
            catalog_generation: the generation that shows it.
        """
        with self._lock:
            # If the generation before was ours, too, nobody else can have published in between.
            if self._catalog_generation not in {catalog_generation - 1, catalog_generation}:
                self._refresh()
            self._catalog_generation = max(self._catalog_generation or 0, catalog_generation)
            name = comparison.adapter_name
            self._known = {key: member for key, member in self._known.items() if key[0] != name}
            self._take(name, revision)
            others = [member for member in self._others(name) if member.arrival > comparison.last_arrival]
        return tuple(self._duplicates(comparison.adapter, comparison.traits, comparison.source_sha256, others))

    def _others(self, adapter_name: str) -> list[PoolMember]:
        return [member for member in self._known.values() if member and member.adapter_name != adapter_name]

    def _refresh(self) -> None:
        registered = frozenset(self._source.registered_versions().items())
        self._known = {key: member for key, member in self._known.items() if key in registered}
        for adapter_name, revision in sorted(registered):
            self._take(adapter_name, revision)
        self._read_at = time.monotonic()

    def _take(self, adapter_name: str, revision: str) -> None:
        if (adapter_name, revision) not in self._known:
            self._known[adapter_name, revision] = self._read(adapter_name, revision)

    def _read(self, adapter_name: str, revision: str) -> PoolMember | None:
        try:
            manifest = self._artifacts.manifest(revision)
        except UnknownAdapter:
            return None  # collected meanwhile, or damaged: it is no part of the pool
        if manifest.traits is None:
            return None  # ingested before traits were kept
        self._num_arrivals += 1
        return PoolMember(
            adapter_name=adapter_name,
            revision=revision,
            source_sha256=manifest.provenance.source_sha256,
            traits=manifest.traits,
            arrival=self._num_arrivals,
        )

    def _duplicates(
        self, adapter: LoRAAdapter, traits: AdapterTraits, source_sha256: str, others: Sequence[PoolMember]
    ) -> list[Finding]:
        same_files = [member for member in others if member.source_sha256 == source_sha256]
        return [_same_files(same_files)] if same_files else self._same_updates(adapter, traits, others)

    def _same_updates(self, adapter: LoRAAdapter, traits: AdapterTraits, others: Sequence[PoolMember]) -> list[Finding]:
        confirmed: list[PoolMember] = []
        distances: dict[str, float] = {}
        for member in others:
            if not may_be_same(traits.fingerprint, member.traits.fingerprint, norm=traits.update_norm):
                continue
            if member.revision not in distances:
                distances[member.revision] = self._distance(adapter, member)
            if distances[member.revision] <= SAME_UPDATE_TOLERANCE:
                confirmed.append(member)
        return [_same_update(confirmed, max(distances[member.revision] for member in confirmed))] if confirmed else []

    def _distance(self, adapter: LoRAAdapter, member: PoolMember) -> float:
        try:
            return relative_distance(adapter, recompose(self._artifacts.components(member.revision, RocBasis.TRAINED)))
        except UnknownAdapter:
            return float("inf")


def _same_files(members: Sequence[PoolMember]) -> Finding:
    return Finding(
        code="duplicate_content",
        severity=Severity.WARNING,
        place="name",
        message=f"The same files are registered as {_named(members)}.",
        remedy="Use that name, or an alias for it: two equal adapters share the requests that are meant for one.",
    )


def _same_update(members: Sequence[PoolMember], distance: float) -> Finding:
    return Finding(
        code="duplicate_update",
        severity=Severity.WARNING,
        place="name",
        message=f"The adapter changes the base exactly as {_named(members)} does, up to the basis of its factors "
        f"(relative distance {distance:.1e}).",
        remedy="Retire one of them, or tell them apart by their sample texts.",
    )


def _named(members: Sequence[PoolMember]) -> str:
    names = sorted({member.adapter_name for member in members})
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest
