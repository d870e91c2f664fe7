"""Publishes which adapters exist, under generation numbers that never go back.

A publication is: take the right to publish; write the pointer of the name, with the next generation, to disk; commit
index, counter and change stream in one step. A crash in between leaves a pointer that the index does not know, which
the next publication of that name, or `reconcile` at the next start, brings into agreement. The disk is always right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hilora.adapter import RocBasis, adapter_id_of
from hilora.errors import AdapterAlreadyRegistered, Conflict, RegistryUnavailable, UnknownAdapter
from services.common.log import get_logger
from services.registry.artifact import ArtifactManifest
from services.registry.ports import ArtifactStore, CatalogIndex, CatalogTransaction, RegistrationStore
from services.registry.registration import (
    CatalogChange,
    CatalogEntry,
    CatalogNews,
    CatalogResync,
    CatalogSnapshot,
    Registration,
    RegistrationState,
    entry_of,
)
from services.registry.validation_report import ValidationReport

_log = get_logger(__name__)

_PUBLISH_ATTEMPTS = 3


class Catalog:
    """The adapters that requests may use.

    Args:
        index: the published catalogue.
        registrations: which version each name means.
        artifacts: the versions.
    """

    def __init__(self, *, index: CatalogIndex, registrations: RegistrationStore, artifacts: ArtifactStore) -> None:
        self._index = index
        self._registrations = registrations
        self._artifacts = artifacts

    async def publish(
        self, manifest: ArtifactManifest, *, adapter_name: str, job_id: str, is_replacement: bool
    ) -> CatalogEntry:
        """Let a name mean a stored version. Publishing the same again changes nothing.

        Raises:
            AdapterAlreadyRegistered: the name means other content, and `is_replacement` is false.
            RegistryUnavailable: the index does not answer.
        """
        for _ in range(_PUBLISH_ATTEMPTS):
            try:
                async with self._index.publishing() as transaction:
                    return await self._publish(
                        transaction, manifest, adapter_name, job_id, is_replacement=is_replacement
                    )
            except Conflict as error:
                if isinstance(error, AdapterAlreadyRegistered):
                    raise
                _log.warning("publish_retried", adapter=adapter_name, reason=error.code)
        raise RegistryUnavailable(
            f"{adapter_name} could not be published: others kept publishing in between.", remedy="Try again."
        )

    async def check_name_is_free(self, adapter_name: str, *, source_sha256: str, is_replacement: bool) -> None:
        """Find a conflict early.

        Raises:
            AdapterAlreadyRegistered: as `publish` would.
        """
        current = await asyncio.to_thread(self._registrations.get, adapter_name)
        if current is not None:
            await self._check_replaceable(current, source_sha256=source_sha256, is_replacement=is_replacement)

    async def identical(
        self, adapter_name: str, *, source_sha256: str, base_model: str, encoder_id: str
    ) -> ArtifactManifest | None:
        """The registered version of a name, if ingesting these files for this base and encoder would make it again."""
        current = await asyncio.to_thread(self._registrations.get, adapter_name)
        if current is None or current.state is not RegistrationState.READY:
            return None
        try:
            manifest = await asyncio.to_thread(self._artifacts.manifest, current.revision)
        except UnknownAdapter:
            return None
        made_of = (manifest.provenance.source_sha256, manifest.base_model, manifest.encoder_id)
        return manifest if made_of == (source_sha256, base_model, encoder_id) else None

    async def retire(self, adapter_name: str) -> int:
        """Take a name out of the catalogue; its version stays stored for plans that already run.

        Returns:
            The generation from which on it is gone.

        Raises:
            UnknownAdapter: no adapter of this name is registered.
        """
        async with self._index.publishing() as transaction:
            generation = await self._generation_of(transaction)
            current = await asyncio.to_thread(self._registrations.get, adapter_name)
            is_published = await transaction.entry(adapter_name) is not None
            if current is None or (current.state is RegistrationState.RETIRED and not is_published):
                raise _unknown(adapter_name)
            tombstone = Registration(
                adapter_name=adapter_name,
                revision=current.revision,
                state=RegistrationState.RETIRED,
                catalog_generation=generation + 1,
                created_at=current.created_at,
                job_id=current.job_id,
            )
            await asyncio.to_thread(self._registrations.put, tombstone)
            await transaction.commit(
                CatalogChange(
                    catalog_generation=generation + 1,
                    previous_generation=generation,
                    adapter_name=adapter_name,
                    entry=None,
                )
            )
            _log.info("adapter_retired", adapter=adapter_name, catalog_generation=generation + 1)
            return generation + 1

    async def snapshot(self) -> CatalogSnapshot:
        """The whole catalogue. If the index lost its data, it is rebuilt first."""
        snapshot = await self._index.read()
        if snapshot is None:
            await self.reconcile()
            snapshot = await self._index.read()
        if snapshot is None:
            raise RegistryUnavailable("The catalogue index loses its data.", remedy="Check the memory of Redis.")
        return snapshot

    async def entry(self, adapter_name: str) -> CatalogEntry:
        """One adapter. Raises UnknownAdapter."""
        entry = await self._index.entry(adapter_name)
        if entry is None:
            entry = (await self.snapshot()).entries.get(adapter_name)
        if entry is None:
            raise _unknown(adapter_name)
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
        """The sample embeddings `[m, E]` of an entry."""
        return await asyncio.to_thread(self._artifacts.sample_embeddings, entry.revision)

    async def manifest(self, entry: CatalogEntry) -> ArtifactManifest:
        """What is stored for an entry, provenance included."""
        return await asyncio.to_thread(self._artifacts.manifest, entry.revision)

    async def validation_report(self, entry: CatalogEntry) -> ValidationReport | None:
        """What was found when an entry was ingested; `None` for versions older than such reports."""
        return await asyncio.to_thread(self._artifacts.validation_report, entry.revision)

    async def open_components(self, adapter_id: str, basis: RocBasis) -> BinaryIO:
        """The components of a version, also of one that was replaced or retired while its files are still here.

        Raises:
            UnknownAdapter: `unknown_adapter_version`.
        """
        return await asyncio.to_thread(self._open_components, adapter_id, basis)

    async def reconcile(self) -> None:
        """Make the published catalogue agree with the disk; nothing happens if it does."""
        async with self._index.publishing() as transaction:
            generation = transaction.catalog_generation
            if generation is not None and await self._agrees(generation):
                return
            await self._rebuild(transaction)

    async def _publish(
        self,
        transaction: CatalogTransaction,
        manifest: ArtifactManifest,
        adapter_name: str,
        job_id: str,
        *,
        is_replacement: bool,
    ) -> CatalogEntry:
        generation = await self._generation_of(transaction)
        current = await asyncio.to_thread(self._registrations.get, adapter_name)
        published = await transaction.entry(adapter_name)
        is_same = (
            current is not None and current.state is RegistrationState.READY and current.revision == manifest.revision
        )
        if is_same and published is not None and published.revision == manifest.revision:
            return published
        if current is not None and not is_same:
            await self._check_replaceable(
                current, source_sha256=manifest.provenance.source_sha256, is_replacement=is_replacement
            )
        registration = Registration(
            adapter_name=adapter_name,
            revision=manifest.revision,
            state=RegistrationState.READY,
            catalog_generation=generation + 1,
            created_at=current.created_at if is_same and current else time.time(),
            job_id=job_id,
        )
        await asyncio.to_thread(self._registrations.put, registration)
        entry = entry_of(registration, manifest)
        await transaction.commit(
            CatalogChange(
                catalog_generation=generation + 1,
                previous_generation=generation,
                adapter_name=adapter_name,
                entry=entry,
            )
        )
        _log.info("adapter_published", adapter=entry.adapter_id, catalog_generation=generation + 1)
        return entry

    async def _check_replaceable(self, current: Registration, *, source_sha256: str, is_replacement: bool) -> None:
        if is_replacement or current.state is RegistrationState.RETIRED:
            return
        try:
            manifest = await asyncio.to_thread(self._artifacts.manifest, current.revision)
        except UnknownAdapter:
            return  # the name points at nothing that could be served
        if manifest.provenance.source_sha256 != source_sha256:
            raise AdapterAlreadyRegistered(
                f"{current.adapter_name} is registered with other content ({current.adapter_id}).",
                remedy="Choose another name, or send it again with replace=true to publish a new version.",
                place="name",
            )

    async def _generation_of(self, transaction: CatalogTransaction) -> int:
        if transaction.catalog_generation is None:
            await self._rebuild(transaction)
        assert transaction.catalog_generation is not None
        return transaction.catalog_generation

    async def _agrees(self, generation: int) -> bool:
        registrations = await asyncio.to_thread(self._registrations.all)
        snapshot = await self._index.read()
        if snapshot is None or any(item.catalog_generation > generation for item in registrations):
            return False
        wanted = {item.adapter_name: item.revision for item in registrations if item.state is RegistrationState.READY}
        return wanted == {name: entry.revision for name, entry in snapshot.entries.items()}

    async def _rebuild(self, transaction: CatalogTransaction) -> None:
        registrations = await asyncio.to_thread(self._registrations.all)
        entries = await asyncio.to_thread(self._entries_of, registrations)
        seen = [transaction.catalog_generation or 0, *(item.catalog_generation for item in registrations)]
        snapshot = CatalogSnapshot(catalog_generation=max(seen) + 1, entries=entries)
        await transaction.replace(snapshot)
        _log.info("catalog_rebuilt", catalog_generation=snapshot.catalog_generation, num_adapters=len(entries))

    def _entries_of(self, registrations: list[Registration]) -> dict[str, CatalogEntry]:
        entries: dict[str, CatalogEntry] = {}
        for registration in registrations:
            if registration.state is not RegistrationState.READY:
                continue
            try:
                manifest = self._artifacts.manifest(registration.revision)
            except UnknownAdapter as error:
                # One damaged version must not keep the others out of the catalogue.
                _log.error("artifact_missing", adapter=registration.adapter_id, reason=error.message)
                continue
            entries[registration.adapter_name] = entry_of(registration, manifest)
        return entries

    def _open_components(self, adapter_id: str, basis: RocBasis) -> BinaryIO:
        adapter_name, _, revision_head = adapter_id.rpartition("@")
        registration = self._registrations.get(adapter_name) if adapter_name else None
        if registration is not None and registration.adapter_id == adapter_id:
            return self._artifacts.open_components(registration.revision, basis)
        revision = self._artifacts.find(revision_head)
        if revision is None or adapter_id_of(adapter_name, revision) != adapter_id:
            raise UnknownAdapter(
                f"No version {adapter_id!r} is stored here.",
                code="unknown_adapter_version",
                remedy="Take a new snapshot of the catalogue.",
                place="adapter_id",
            )
        return self._artifacts.open_components(revision, basis)


def _unknown(adapter_name: str) -> UnknownAdapter:
    return UnknownAdapter(
        f"No adapter {adapter_name!r} is registered.",
        remedy="GET /v1/adapters lists those that are.",
        place="name",
    )
