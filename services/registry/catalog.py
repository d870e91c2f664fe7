"""The adapters that requests may use: what is published, and how names come and go.

Versions, reviews, aliases and access are changed by `lifecycle.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hilora.access import AdapterAccess
from hilora.adapter import RocBasis, adapter_id_of
from hilora.character_grams import SampleGrams
from hilora.errors import AdapterAlreadyRegistered, Conflict, UnknownAdapter
from hilora.finding import Finding, Severity
from services.registry.artifact import ArtifactManifest, ProfileRecord
from services.registry.catalog_entry import CatalogEntry, CatalogNews, CatalogResync, CatalogSnapshot
from services.registry.ports import ArtifactStore, CatalogIndex, ProfileStore, RegistrationStore
from services.registry.publication import CatalogPublisher, KnownName, Published
from services.registry.registration import (
    AdapterVersion,
    ProfileFailure,
    Registration,
    VersionState,
    first_registration,
)
from services.registry.validation_report import ValidationReport


class Catalog:
    """The adapters that requests may use.

    Args:
        index: the published catalogue.
        registrations: the versions of each name.
        artifacts: their components.
        profiles: their profiles.
        publisher: changes it.
        holds_new_versions: whether a new version waits in quarantine until somebody approves it.
        default_access: who may use an adapter of which nobody said otherwise.
    """

    def __init__(
        self,
        *,
        index: CatalogIndex,
        registrations: RegistrationStore,
        artifacts: ArtifactStore,
        profiles: ProfileStore,
        publisher: CatalogPublisher,
        holds_new_versions: bool = False,
        default_access: AdapterAccess | None = None,
    ) -> None:
        self._index = index
        self._registrations = registrations
        self._artifacts = artifacts
        self._profiles = profiles
        self._publisher = publisher
        self._holds_new_versions = holds_new_versions
        self._default_access = default_access or AdapterAccess()

    async def publish(
        self,
        manifest: ArtifactManifest,
        *,
        adapter_name: str,
        job_id: str,
        is_replacement: bool,
        profile: ProfileRecord | None = None,
        source_sha256: str | None = None,
        is_held: bool = False,
    ) -> Published:
        """Let a name mean a stored version, or hold the version in quarantine. The same again changes nothing.

        Args:
            manifest: the version.
            adapter_name: the name.
            job_id: the ingest that made it.
            is_replacement: whether another version of the name may be replaced.
            profile: its profile; without one it can be named, never chosen.
            source_sha256: digest of what was sent in; None takes the manifest's.
            is_held: whether it waits for approval, whatever holds for others.

        Returns:
            What the catalogue shows; no entry, or an older one, if the version is held back.

        Raises:
            AdapterAlreadyRegistered: the name means other content, and `is_replacement` is false.
            Conflict: `name_is_an_alias`; `adapter_rejected`, for content that was decided against.
            RegistryUnavailable: the index does not answer.
        """
        digest = source_sha256 or manifest.provenance.source_sha256
        new = AdapterVersion(
            version=1,
            revision=manifest.revision,
            state=VersionState.QUARANTINED if self._holds_new_versions or is_held else VersionState.READY,
            source_sha256=digest,
            created_at=time.time(),
            job_ids=(job_id,),
            profile_ids={profile.encoder_id: profile.profile_id} if profile else {},
        )

        def published(known: KnownName) -> Registration:
            if adapter_name in known.record.aliases:
                raise _is_alias(adapter_name)
            current = known.registration
            if current is None:
                return _current(first_registration(adapter_name, new, access=self._default_access), new)
            _check_replaceable(current, source_sha256=digest, is_replacement=is_replacement)
            stored = current.with_revision(manifest.revision)
            if stored is None:
                added = current.adding(new)
                revived = replace(added, is_retired=False, current=None if current.is_retired else current.current)
                return _current(revived, added.versions[-1])
            if stored.state is VersionState.REJECTED:
                raise _rejected(current, stored)
            # Other texts than before replace what every encoder made of the old ones.
            is_same = stored.source_sha256 == digest or not new.profile_ids
            profile_ids = {**stored.profile_ids, **new.profile_ids} if is_same else new.profile_ids
            again = replace(stored.noting(job_id), source_sha256=digest, profile_ids=profile_ids)
            return _current(current.replacing(again), again)

        encoder_id = profile.encoder_id if profile else ""
        return await self._publisher.change(adapter_name, published, encoder_id=encoder_id)

    async def check_name_is_free(self, adapter_name: str, *, source_sha256: str, is_replacement: bool) -> None:
        """Find a conflict early. Raises as `publish` would."""
        if adapter_name in (await asyncio.to_thread(self._registrations.record)).aliases:
            raise _is_alias(adapter_name)
        current = await asyncio.to_thread(self._registrations.get, adapter_name)
        if current is not None:
            _check_replaceable(current, source_sha256=source_sha256, is_replacement=is_replacement)

    async def identical(
        self, adapter_name: str, *, source_sha256: str, base_model: str, encoder_id: str
    ) -> ArtifactManifest | None:
        """The registered version of a name, if ingesting these files for this base and encoder would make it again."""
        registration = await asyncio.to_thread(self._registrations.get, adapter_name)
        current = registration.current_version if registration and not registration.is_retired else None
        if current is None or current.source_sha256 != source_sha256 or encoder_id not in current.profile_ids:
            return None
        try:
            manifest = await asyncio.to_thread(self._artifacts.manifest, current.revision)
        except UnknownAdapter:
            return None
        return manifest if manifest.base_model == base_model else None

    async def retire(self, adapter_name: str) -> int:
        """Take a name out of the catalogue; its versions stay stored for plans that already run.

        Returns:
            The generation from which on it is gone.

        Raises:
            UnknownAdapter: no adapter of this name is registered.
        """

        def retired(known: KnownName) -> Registration:
            current = known.registration
            if current is None or (current.is_retired and not known.is_published):
                raise unknown_adapter(adapter_name)
            return replace(current, is_retired=True)

        return (await self._publisher.change(adapter_name, retired)).catalog_generation

    async def snapshot(self) -> CatalogSnapshot:
        """The whole catalogue. If the index lost its data, it is rebuilt first."""
        return await self._publisher.snapshot()

    async def entry(self, adapter_name: str) -> CatalogEntry:
        """One adapter. Raises UnknownAdapter."""
        entry = await self._index.entry(adapter_name)
        if entry is None:
            entry = (await self.snapshot()).entries.get(adapter_name)
        if entry is None:
            raise unknown_adapter(adapter_name)
        return entry

    async def follow(self, after_generation: int, *, heartbeat_seconds: float) -> AsyncIterator[CatalogNews]:
        """See `CatalogIndex.follow`. If the index lost its data, it is rebuilt before the resync is announced."""
        async for news in self._index.follow(after_generation, heartbeat_seconds=heartbeat_seconds):
            if isinstance(news, CatalogResync):
                generation = (await self.snapshot()).catalog_generation
                yield CatalogResync(catalog_generation=generation)
                return
            yield news

    async def sample_embeddings(self, entry: CatalogEntry) -> NDArray[np.float32]:
        """The sample embeddings `[m, E]` of an entry that has a profile. Raises UnknownAdapter (`unknown_profile`)."""
        return await asyncio.to_thread(self._profiles.embeddings, entry.revision, entry.profile_id)

    def stored_samples(self, entry: CatalogEntry) -> tuple[NDArray[np.float32], SampleGrams]:
        """The same, and how the texts are written; waits for the disk. Raises UnknownAdapter (`unknown_profile`)."""
        embeddings_mE = self._profiles.embeddings(entry.revision, entry.profile_id)
        return embeddings_mE, self._profiles.grams(entry.revision, entry.profile_id)

    async def manifest(self, entry: CatalogEntry) -> ArtifactManifest:
        """What is stored for an entry, provenance included."""
        return await asyncio.to_thread(self._artifacts.manifest, entry.revision)

    async def validation_report(self, entry: CatalogEntry) -> ValidationReport | None:
        """What was found when an entry was ingested, and why it has no profile, if making one failed since; `None` for
        versions older than such reports."""
        report = await asyncio.to_thread(self._artifacts.validation_report, entry.revision)
        registration = await asyncio.to_thread(self._registrations.get, entry.adapter_name)
        version = registration.with_revision(entry.revision) if registration else None
        if version is None or version.profile_failure is None or version.profile_ids:
            return report
        return (report or ValidationReport()).adding([_without_profile(version.profile_failure, entry.adapter_name)])

    async def open_components(self, adapter_id: str, basis: RocBasis) -> BinaryIO:
        """The components of a version, also of one that was replaced or retired while its files are still here.

        Raises:
            UnknownAdapter: `unknown_adapter_version`.
        """
        return await asyncio.to_thread(self._open_components, adapter_id, basis)

    async def reconcile(self) -> None:
        """Make the published catalogue agree with the disk; nothing happens if it does."""
        await self._publisher.reconcile()

    def _open_components(self, adapter_id: str, basis: RocBasis) -> BinaryIO:
        adapter_name, _, revision_head = adapter_id.rpartition("@")
        registration = self._registrations.get(adapter_name) if adapter_name else None
        for version in registration.versions if registration else ():
            if adapter_id_of(adapter_name, version.revision) == adapter_id:
                return self._artifacts.open_components(version.revision, basis)
        revision = self._artifacts.find(revision_head)
        if revision is None or adapter_id_of(adapter_name, revision) != adapter_id:
            raise UnknownAdapter(
                f"No version {adapter_id!r} is stored here.",
                code="unknown_adapter_version",
                remedy="Take a new snapshot of the catalogue.",
                place="adapter_id",
            )
        return self._artifacts.open_components(revision, basis)


def unknown_adapter(adapter_name: str) -> UnknownAdapter:
    """The refusal of a name that nobody registered."""
    return UnknownAdapter(
        f"No adapter {adapter_name[:128]!r} is registered.",
        remedy="GET /v1/adapters lists those that are.",
        place="name",
    )


def _current(registration: Registration, version: AdapterVersion) -> Registration:
    """The record pointing to a version that may be served; one in quarantine leaves the pointer where it is."""
    return registration.pointing_to(version) if version.state is VersionState.READY else registration


def _check_replaceable(current: Registration, *, source_sha256: str, is_replacement: bool) -> None:
    shown = current.current_version or current.versions[-1]
    is_free = current.is_retired or shown.state in {VersionState.REJECTED, VersionState.COLLECTED}
    if is_replacement or is_free or shown.source_sha256 == source_sha256:
        return
    raise AdapterAlreadyRegistered(
        f"{current.adapter_name} is registered with other content ({current.adapter_id(shown)}).",
        remedy="Choose another name, or send it again with replace=true to publish a new version.",
        place="name",
    )


def _without_profile(failure: ProfileFailure, adapter_name: str) -> Finding:
    return Finding(
        code="profile_failed",
        severity=Severity.WARNING,
        place="samples",
        message=f"No request is routed to it: making its profile failed {failure.num_attempts} times, the last with "
        f"{failure.code}: {failure.message}",
        remedy=f"Send texts to POST /v1/adapters/{adapter_name}/samples, or, once the cause is gone, order a profile "
        f"at POST /v1/adapters/{adapter_name}/profile.",
    )


def _is_alias(adapter_name: str) -> Conflict:
    return Conflict(
        f"{adapter_name!r} is an alias.",
        code="name_is_an_alias",
        remedy=f"Choose another name, or DELETE /v1/aliases/{adapter_name} first.",
        place="name",
    )


def _rejected(registration: Registration, version: AdapterVersion) -> Conflict:
    reason = version.review.reason if version.review else ""
    return Conflict(
        f"This content was rejected as version {version.version} of {registration.adapter_name}: {reason}",
        code="adapter_rejected",
        remedy="Send other content, or have that version approved.",
        place="name",
    )
