"""Carries every change of the catalogue onto disk and into the index, under generation numbers that never go back.

A change is: take the right to publish; compute the record after it from the record before; write it to disk, with the
next generation; commit index, counter and change stream in one step. A crash in between leaves a record that the index
does not know, which the next change of that name, or `reconcile`, brings into agreement. The disk is always right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from hilora.errors import Conflict, RegistryUnavailable, UnknownAdapter
from services.common.log import get_logger
from services.registry.artifact import ArtifactManifest
from services.registry.catalog_entry import (
    CatalogChange,
    CatalogEntry,
    CatalogRecord,
    CatalogSnapshot,
    VersionEntry,
)
from services.registry.ports import ArtifactStore, CatalogIndex, CatalogTransaction, ProfileStore, RegistrationStore
from services.registry.registration import AdapterVersion, Registration

_T = TypeVar("_T")

_log = get_logger(__name__)

_ATTEMPTS = 5
_RACES = frozenset({"catalog_lock_lost", "registration_changed"})


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownName:
    """What a change of a name starts from."""

    registration: Registration | None
    is_published: bool
    """Whether the index shows the name, which after a crash may differ from what the record says."""
    record: CatalogRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a change led to."""

    registration: Registration
    entry: CatalogEntry | None
    """What the catalogue shows under the name now; None if nothing."""
    catalog_generation: int
    """The generation from which on it shows that."""


Transition = Callable[[KnownName], Registration]
"""From a name's record to the record after a change. Pure; raises what the change is refused with."""


class CatalogPublisher:
    """The one way to change the catalogue.

    Args:
        index: the published catalogue.
        registrations: the records of names, and of the catalogue as a whole.
        artifacts: the versions.
        profiles: their profiles.
    """

    def __init__(
        self, *, index: CatalogIndex, registrations: RegistrationStore, artifacts: ArtifactStore, profiles: ProfileStore
    ) -> None:
        self._index = index
        self._registrations = registrations
        self._artifacts = artifacts
        self._profiles = profiles

    async def change(self, adapter_name: str, transition: Transition, *, encoder_id: str = "") -> Published:
        """Change what a name means. A change that leads to what is there already publishes nothing.

        Args:
            adapter_name: the name.
            transition: the change; called again if another process was faster.
            encoder_id: the encoder of a profile that the change brings; becomes the catalogue's if it has none.

        Raises:
            HiloraError: what `transition` raised.
            RegistryUnavailable: the index does not answer, or others keep publishing in between.
        """

        async def attempt(transaction: CatalogTransaction) -> Published:
            generation = await self._generation_of(transaction)
            record = await asyncio.to_thread(self._registrations.record)
            if encoder_id and not record.encoder_id:
                adopted = replace(record, encoder_id=encoder_id, encoder_since=time.time())
                await asyncio.to_thread(self._registrations.put_record, adopted, replaces=record)
                record = adopted
            return await self._change(transaction, adapter_name, transition, record=record, generation=generation)

        return await self._with_the_right(attempt, what=adapter_name)

    async def note(self, adapter_name: str, transition: Transition) -> Registration:
        """Change a name's record where nothing is to be published: the catalogue must not show the difference."""
        for _ in range(_ATTEMPTS):
            current = await asyncio.to_thread(self._registrations.get, adapter_name)
            record = await asyncio.to_thread(self._registrations.record)
            changed = transition(KnownName(registration=current, is_published=False, record=record))
            if changed == current:
                return changed
            try:
                await asyncio.to_thread(self._registrations.put, changed, replaces=current)
            except Conflict:
                continue
            return changed
        raise _busy(adapter_name)

    async def change_record(self, transition: Callable[[CatalogRecord, frozenset[str]], CatalogRecord]) -> int:
        """Change aliases or encoder, for all followers at one generation.

        Args:
            transition: from the record and the names in use to the record after the change.

        Returns:
            The generation from which on the change holds.
        """

        async def attempt(transaction: CatalogTransaction) -> int:
            generation = await self._generation_of(transaction)
            record = await asyncio.to_thread(self._registrations.record)
            registrations = await asyncio.to_thread(self._registrations.all)
            names = frozenset(item.adapter_name for item in registrations if not item.is_retired)
            changed = replace(transition(record, names), catalog_generation=generation + 1)
            is_same_encoder = changed.encoder_id == record.encoder_id
            published = await self._index.read()
            shown = None if published is None else published.aliases
            if is_same_encoder and changed.aliases == record.aliases == shown:
                return generation
            await asyncio.to_thread(self._registrations.put_record, changed, replaces=record)
            if is_same_encoder:
                await transaction.commit(
                    CatalogChange(
                        catalog_generation=generation + 1,
                        previous_generation=generation,
                        aliases=dict(changed.aliases),
                    )
                )
            else:
                await transaction.replace(await self._wanted(generation + 1))
            _log.info("catalog_record_changed", catalog_generation=generation + 1, encoder_id=changed.encoder_id)
            return generation + 1

        return await self._with_the_right(attempt, what="The catalogue")

    async def snapshot(self) -> CatalogSnapshot:
        """The whole published catalogue. If the index lost its data, it is rebuilt first."""
        snapshot = await self._index.read()
        if snapshot is None:
            await self.reconcile()
            snapshot = await self._index.read()
        if snapshot is None:
            raise RegistryUnavailable("The catalogue index loses its data.", remedy="Check the memory of Redis.")
        return snapshot

    async def reconcile(self) -> None:
        """Make the published catalogue agree with the disk; nothing happens if it does."""
        async with self._index.publishing() as transaction:
            generation = transaction.catalog_generation
            if generation is None:
                await self._rebuild(transaction)
                return
            published = await self._index.read()
            wanted = await self._wanted(generation)
            if published != wanted:
                await self._rebuild(transaction)

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[CatalogTransaction]:
        """Keep everybody from publishing for a moment, to decide what nobody needs."""
        async with self._index.publishing() as transaction:
            yield transaction

    async def _change(
        self,
        transaction: CatalogTransaction,
        adapter_name: str,
        transition: Transition,
        *,
        record: CatalogRecord,
        generation: int,
    ) -> Published:
        current = await asyncio.to_thread(self._registrations.get, adapter_name)
        published = await transaction.entry(adapter_name)
        known = KnownName(registration=current, is_published=published is not None, record=record)
        changed = transition(known)
        entry = await asyncio.to_thread(self._entry_of, changed, record.encoder_id)
        if entry == published:
            if changed != current:
                await asyncio.to_thread(
                    self._registrations.put, replace(changed, changed_at=time.time()), replaces=current
                )
            return Published(registration=changed, entry=entry, catalog_generation=generation)
        changed = replace(changed, catalog_generation=generation + 1, changed_at=time.time())
        entry = None if entry is None else replace(entry, catalog_generation=generation + 1)
        await asyncio.to_thread(self._registrations.put, changed, replaces=current)
        await transaction.commit(
            CatalogChange(
                catalog_generation=generation + 1,
                previous_generation=generation,
                adapter_name=adapter_name,
                entry=entry,
            )
        )
        _log.info(
            "catalog_changed",
            adapter=entry.adapter_id if entry else adapter_name,
            state=changed.state,
            catalog_generation=generation + 1,
        )
        return Published(registration=changed, entry=entry, catalog_generation=generation + 1)

    async def _with_the_right(self, attempt: Callable[[CatalogTransaction], Awaitable[_T]], *, what: str) -> _T:
        for _ in range(_ATTEMPTS):
            try:
                async with self._index.publishing() as transaction:
                    return await attempt(transaction)
            except Conflict as error:
                if error.code not in _RACES:
                    raise
                _log.warning("publish_retried", what=what, reason=error.code)
        raise _busy(what)

    async def _generation_of(self, transaction: CatalogTransaction) -> int:
        if transaction.catalog_generation is None:
            await self._rebuild(transaction)
        assert transaction.catalog_generation is not None
        return transaction.catalog_generation

    async def _rebuild(self, transaction: CatalogTransaction) -> None:
        snapshot = await self._wanted(transaction.catalog_generation or 0)
        snapshot = replace(snapshot, catalog_generation=snapshot.catalog_generation + 1)
        await transaction.replace(snapshot)
        _log.info("catalog_rebuilt", catalog_generation=snapshot.catalog_generation, num_adapters=len(snapshot.entries))

    async def _wanted(self, generation: int) -> CatalogSnapshot:
        """What the disk says, at a generation that is at least the given one."""
        registrations = await asyncio.to_thread(self._registrations.all)
        record = await asyncio.to_thread(self._registrations.record)
        seen = [generation, record.catalog_generation, *(item.catalog_generation for item in registrations)]
        return CatalogSnapshot(
            catalog_generation=max(seen),
            entries=await asyncio.to_thread(self._entries_of, registrations, record.encoder_id),
            aliases=dict(record.aliases),
        )

    def _entries_of(self, registrations: list[Registration], encoder_id: str) -> Mapping[str, CatalogEntry]:
        entries: dict[str, CatalogEntry] = {}
        for registration in registrations:
            try:
                entry = self._entry_of(registration, encoder_id)
            except UnknownAdapter as error:
                # One damaged version must not keep the others out of the catalogue.
                _log.error("artifact_missing", adapter=registration.adapter_name, reason=error.message)
                continue
            if entry is not None:
                entries[registration.adapter_name] = entry
        return entries

    def _entry_of(self, registration: Registration, encoder_id: str) -> CatalogEntry | None:
        """What the catalogue is to show under a name. Raises UnknownAdapter if the current version is not stored."""
        current = registration.current_version
        if registration.is_retired or current is None:
            return None
        manifest = self._artifacts.manifest(current.revision)
        profile = None
        if (profile_id := current.profile_ids.get(encoder_id)) is not None:
            try:
                profile = self._profiles.record(current.revision, profile_id)
            except UnknownAdapter as error:
                # Without its profile it can still be named.
                _log.error("profile_missing", adapter=registration.adapter_name, reason=error.message)
        others = (self._version_entry(item) for item in registration.servable_versions if item != current)
        return CatalogEntry(
            adapter_name=registration.adapter_name,
            version=current.version,
            revision=current.revision,
            lora_rank=manifest.lora_rank,
            num_modules=manifest.num_modules,
            component_bytes=manifest.component_bytes,
            catalog_generation=registration.catalog_generation,
            created_at=current.available_at,
            base_model=manifest.base_model,
            profile_id=profile.profile_id if profile else "",
            encoder_id=profile.encoder_id if profile else "",
            samples_source=profile.samples_source if profile else "",
            num_samples=profile.num_samples if profile else 0,
            embedding_dim=profile.embedding_dim if profile else 0,
            component_sha256=manifest.component_sha256,
            access=registration.access,
            tags=registration.tags,
            other_versions=tuple(other for other in others if other is not None),
        )

    def _version_entry(self, version: AdapterVersion) -> VersionEntry | None:
        try:
            manifest: ArtifactManifest = self._artifacts.manifest(version.revision)
        except UnknownAdapter:
            return None
        return VersionEntry(
            version=version.version,
            revision=version.revision,
            lora_rank=manifest.lora_rank,
            num_modules=manifest.num_modules,
            component_bytes=manifest.component_bytes,
            created_at=version.available_at,
            component_sha256=manifest.component_sha256,
        )


def _busy(what: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"{what} could not be published: others kept publishing in between.", remedy="Try again."
    )
