"""Finds the versions and profiles that nobody can need any more, and deletes their files in two steps.

First a version leaves the history of its name (COLLECTED), then files that no record mentions are set aside, and only
later deleted. Each step looks at the records again under the right to publish; whatever a record mentions is brought
back. So neither a crash, nor a publisher that was faster, nor a second registry can lose a version that is in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hilora.version_selector import split_reference
from services.common.log import get_logger
from services.registry.catalog_entry import CatalogRecord
from services.registry.ports import RegistrationStore, StoreCleaner
from services.registry.publication import CatalogPublisher, KnownName
from services.registry.registration import AdapterVersion, Registration, VersionState

_log = get_logger(__name__)

MAX_COLLECTED_HISTORY = 100
"""Collected versions that a name's history still lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionPolicy:
    """What is kept."""

    keep_versions: int
    """Newest versions of each name that stay, besides the current and the aliased ones."""
    grace_seconds: float
    """Nothing younger is collected, and nothing that was set aside is deleted earlier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionReport:
    """What was, or would be, collected."""

    versions: tuple[str, ...]
    """`name@number` of the versions that left their history."""
    artifacts: tuple[str, ...]
    """Revisions whose components nobody refers to."""
    profiles: tuple[str, ...]
    """`revision/profile_id` of the profiles nobody refers to."""
    freed_bytes: int
    """Size of these artifacts and profiles."""


@dataclass(kw_only=True, slots=True)
class _References:
    """Every key that a record mentions."""

    artifacts: set[str] = field(default_factory=set[str])
    profiles: set[str] = field(default_factory=set[str])


class Collector:
    """Garbage collection of the stores.

    Args:
        publisher: changes the catalogue, and keeps others from changing it.
        registrations: what is referred to.
        artifacts: files of the artifacts.
        profiles: files of the profiles.
        policy: what is kept.
    """

    def __init__(
        self,
        *,
        publisher: CatalogPublisher,
        registrations: RegistrationStore,
        artifacts: StoreCleaner,
        profiles: StoreCleaner,
        policy: CollectionPolicy,
    ) -> None:
        self._publisher = publisher
        self._registrations = registrations
        self._artifacts = artifacts
        self._profiles = profiles
        self._policy = policy

    async def collect(self, *, dry_run: bool = False) -> CollectionReport:
        """Do one round.

        Args:
            dry_run: only say what would be collected.

        Raises:
            RegistryUnavailable: the index does not answer.
        """
        record = await asyncio.to_thread(self._registrations.record)
        registrations = await asyncio.to_thread(self._registrations.all)
        expired = {
            registration.adapter_name: versions
            for registration in registrations
            if (versions := self._expired(registration, record))
        }
        if dry_run:
            after = [self._forgotten(item, record, expired.get(item.adapter_name, ())) for item in registrations]
            return await asyncio.to_thread(self._report, expired, _references(after))
        for registration in registrations:
            versions = expired.get(registration.adapter_name, ())
            if self._forgotten(registration, record, versions) != registration:
                await self._forget(registration.adapter_name, versions)
        async with self._publisher.exclusively() as transaction:
            references = await asyncio.to_thread(self._current_references)
            report = await asyncio.to_thread(self._report, expired, references)
            # A right that was lost since then leaves everything for the next round.
            if await transaction.is_held():
                await asyncio.to_thread(self._set_aside, report)
        await asyncio.to_thread(self._settle_aside)
        if report.versions or report.artifacts or report.profiles:
            _log.info(
                "collected",
                versions=report.versions,
                num_artifacts=len(report.artifacts),
                num_profiles=len(report.profiles),
                freed_bytes=report.freed_bytes,
            )
        return report

    def _expired(self, registration: Registration, record: CatalogRecord) -> tuple[AdapterVersion, ...]:
        now = time.time()
        stored = [item for item in registration.versions if item.state is not VersionState.COLLECTED]
        kept: set[int] = set()
        if not registration.is_retired:
            kept |= {item.version for item in stored[-self._policy.keep_versions :]}
            kept |= {item.version for item in stored if item.state is VersionState.QUARANTINED}
            if registration.current is not None:
                kept.add(registration.current)
        kept |= _aliased(registration.adapter_name, record)
        # Of a retired name, any version could be named until then.
        retired_at = registration.changed_at if registration.is_retired else 0.0
        return tuple(
            item
            for item in stored
            if item.version not in kept
            and now - max(item.available_at, item.left_at, retired_at) >= self._policy.grace_seconds
        )

    async def _forget(self, adapter_name: str, versions: Sequence[AdapterVersion]) -> None:
        def forgotten(known: KnownName) -> Registration:
            registration = known.registration
            assert registration is not None, "names are never forgotten"
            still = self._expired(registration, known.record)
            return self._forgotten(registration, known.record, [item for item in still if item in versions])

        await self._publisher.change(adapter_name, forgotten)
        # Plans that were made a moment ago may still fetch it: from now on its files have the time of grace, too.
        for version in versions:
            await asyncio.to_thread(self._artifacts.touch, version.revision)

    def _forgotten(
        self, registration: Registration, record: CatalogRecord, versions: Sequence[AdapterVersion]
    ) -> Registration:
        registration = _without(registration, versions)
        if time.time() - record.encoder_since < self._policy.grace_seconds:
            return registration
        for version in registration.versions:
            registration = registration.replacing(_without_old_profiles(version, record.encoder_id))
        return registration

    def _report(self, expired: dict[str, tuple[AdapterVersion, ...]], references: _References) -> CollectionReport:
        artifacts = self._unreferenced(self._artifacts, references.artifacts)
        profiles = self._unreferenced(self._profiles, references.profiles)
        sizes = [
            *(self._artifacts.size_bytes(key) for key in artifacts),
            *(self._profiles.size_bytes(key) for key in profiles),
        ]
        return CollectionReport(
            versions=tuple(f"{name}@{item.version}" for name, items in expired.items() for item in items),
            artifacts=tuple(artifacts),
            profiles=tuple(profiles),
            freed_bytes=sum(sizes),
        )

    def _unreferenced(self, store: StoreCleaner, references: set[str]) -> list[str]:
        # An ingest that is about to publish wrote, or touched, its artifact a moment ago.
        return [
            key
            for key in store.stored()
            if key not in references and store.idle_seconds(key) >= self._policy.grace_seconds
        ]

    def _set_aside(self, report: CollectionReport) -> None:
        for store, keys in ((self._artifacts, report.artifacts), (self._profiles, report.profiles)):
            for key in keys:
                store.set_aside(key)

    def _settle_aside(self) -> None:
        """Bring back what is mentioned after all; delete what has been aside long enough."""
        references = self._current_references()
        for store, mentioned in ((self._artifacts, references.artifacts), (self._profiles, references.profiles)):
            for key in store.aside():
                if key in mentioned:
                    store.restore(key)
                    _log.warning("collected_content_restored", key=key)
                elif store.aside_seconds(key) >= self._policy.grace_seconds:
                    store.purge(key)

    def _current_references(self) -> _References:
        return _references(self._registrations.all())


def _references(registrations: Sequence[Registration]) -> _References:
    references = _References()
    for registration in registrations:
        for version in registration.versions:
            if version.state is VersionState.COLLECTED:
                continue
            references.artifacts.add(version.revision)
            references.profiles |= {f"{version.revision}/{profile_id}" for profile_id in version.profile_ids.values()}
    return references


def _without(registration: Registration, versions: Sequence[AdapterVersion]) -> Registration:
    """The record after some of its versions were collected; of those, it keeps no endless list."""
    if not versions:
        return registration
    for version in versions:
        registration = registration.replacing(replace(version, state=VersionState.COLLECTED, profile_ids={}))
    is_gone = registration.current in {version.version for version in versions}
    collected = [item for item in registration.versions if item.state is VersionState.COLLECTED]
    dropped = {item.version for item in collected[:-MAX_COLLECTED_HISTORY]}
    return replace(
        registration,
        current=None if is_gone else registration.current,
        versions=tuple(item for item in registration.versions if item.version not in dropped),
    )


def _without_old_profiles(version: AdapterVersion, encoder_id: str) -> AdapterVersion:
    """The version without profiles of encoders before the catalogue's; those after it are being prepared."""
    known = list(version.profile_ids)
    if encoder_id not in known:
        return version
    kept = known[known.index(encoder_id) :]
    return replace(version, profile_ids={key: version.profile_ids[key] for key in kept})


def _aliased(adapter_name: str, record: CatalogRecord) -> set[int]:
    """Numbers of the versions that aliases name."""
    references = (split_reference(target) for target in record.aliases.values())
    return {int(selector) for name, selector in references if name == adapter_name and selector is not None}
