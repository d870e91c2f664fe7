"""Compares a new adapter with the pool it comes into: is it one that is there already, is it of another size than all?

Both are said and neither is refused. The pool is remembered as a few numbers an adapter (`AdapterTraits`, kept in each
manifest); components are read only of an adapter whose numbers agree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hilora.adapter import LoRAAdapter
from hilora.adapter_review import find_norm_outliers
from hilora.decomposition import recompose
from hilora.errors import UnknownAdapter
from hilora.finding import Finding, Severity
from hilora.fingerprint import SAME_UPDATE_TOLERANCE, AdapterTraits, may_be_same, relative_distance, traits_of
from services.registry.ports import ArtifactStore, PoolSource

_REFRESH_SECONDS = 30.0
"""What other processes registered meanwhile is not known yet: a missed remark, where a snapshot of the catalogue for
each of ten thousand adapters would cost more than all the rest of their ingests."""
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolMember:
    """A registered adapter, as far as later ones are compared with it."""

    adapter_name: str
    revision: str
    source_sha256: str
    traits: AdapterTraits


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An adapter's own traits, and what the pool says about them."""

    traits: AdapterTraits
    findings: tuple[Finding, ...]


class PoolCheck:
    """The memory of the pool in one ingest process. Blocking; threads wait for one another.

    Args:
        source: which versions are registered.
        artifacts: their manifests, and their components where those have to be compared.
    """

    def __init__(self, *, source: PoolSource, artifacts: ArtifactStore) -> None:
        self._source = source
        self._artifacts = artifacts
        self._known: dict[str, PoolMember | None] = {}
        self._members: list[PoolMember] = []
        self._read_at: float | None = None
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
            self._refresh()
            others = [member for member in self._members if member.adapter_name != adapter_name]
        same_files = [member for member in others if member.source_sha256 == source_sha256]
        findings = [_same_files(same_files)] if same_files else self._same_updates(adapter, traits, others)
        findings += find_norm_outliers(traits.norm_by_kind, [member.traits.norm_by_kind for member in others])
        return Comparison(traits=traits, findings=tuple(findings))

    def note(self, *, adapter_name: str, revision: str) -> None:
        """Remember a version that this process has just registered."""
        with self._lock:
            self._members = [member for member in self._members if member.adapter_name != adapter_name]
            self._take(adapter_name, revision)

    def _refresh(self) -> None:
        if self._read_at is not None and time.monotonic() - self._read_at < _REFRESH_SECONDS:
            return
        registered = self._source.registered_versions()
        self._known = {revision: member for revision, member in self._known.items() if revision in registered.values()}
        self._members = []
        for adapter_name, revision in registered.items():
            self._take(adapter_name, revision)
        self._read_at = time.monotonic()

    def _take(self, adapter_name: str, revision: str) -> None:
        if revision not in self._known:
            self._known[revision] = self._read(adapter_name, revision)
        member = self._known[revision]
        if member is not None:
            self._members.append(
                member
                if member.adapter_name == adapter_name
                else PoolMember(
                    adapter_name=adapter_name,
                    revision=revision,
                    source_sha256=member.source_sha256,
                    traits=member.traits,
                )
            )

    def _read(self, adapter_name: str, revision: str) -> PoolMember | None:
        try:
            manifest = self._artifacts.manifest(revision)
        except UnknownAdapter:
            return None  # collected meanwhile, or damaged: it is no part of the pool
        if manifest.traits is None:
            return None  # ingested before traits were kept
        return PoolMember(
            adapter_name=adapter_name,
            revision=revision,
            source_sha256=manifest.provenance.source_sha256,
            traits=manifest.traits,
        )

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
            return relative_distance(adapter, recompose(self._artifacts.components(member.revision)))
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
