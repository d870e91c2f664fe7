"""Gives every version a profile under the encoder in use, and then lets the whole catalogue change over at once.

A run does a few versions and says whether more is to do, so that ingests come in between. What is done is on disk: a
run that is killed is simply repeated. Until the change-over the catalogue shows the profiles of the encoder before;
at it, one new generation shows all adapters under the new one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from hilora.errors import UnknownAdapter
from services.common.log import get_logger
from services.registry.artifact import SampleProfile
from services.registry.catalog_entry import CatalogRecord
from services.registry.lifecycle import newest_profile
from services.registry.ports import ProfileStore, RegistrationStore, TextEncoder
from services.registry.publication import CatalogPublisher, KnownName
from services.registry.registration import AdapterVersion, Registration, VersionState

_log = get_logger(__name__)

_PROFILED_STATES = frozenset({VersionState.READY, VersionState.QUARANTINED})


class Reprofiling:
    """The work of the ingest process when the encoder was changed.

    Args:
        publisher: changes the catalogue.
        registrations: the versions of each name.
        profiles: their profiles.
        encoder: the encoder in use.
        max_versions: versions of one run.

    A process that runs since before the catalogue took up another encoder is out of date: it leaves the pool to the
    processes that were started with that encoder, lest the two change it back and forth.
    """

    def __init__(
        self,
        *,
        publisher: CatalogPublisher,
        registrations: RegistrationStore,
        profiles: ProfileStore,
        encoder: TextEncoder,
        max_versions: int,
    ) -> None:
        self._publisher = publisher
        self._registrations = registrations
        self._profiles = profiles
        self._encoder = encoder
        self._max_versions = max_versions
        self._started_at = time.time()

    async def is_due(self) -> bool:
        """Whether a version lacks a profile, or the catalogue still shows those of another encoder."""
        record = await asyncio.to_thread(self._registrations.record)
        if self._is_outdated(record):
            return False
        is_other = bool(record.encoder_id) and record.encoder_id != self._encoder.encoder_id
        return is_other or bool(await asyncio.to_thread(self._missing))

    async def run(self) -> bool:
        """Do some of the work.

        Returns:
            Whether more is left.

        Raises:
            RegistryUnavailable: the index does not answer.
        """
        if self._is_outdated(await asyncio.to_thread(self._registrations.record)):
            return False
        missing = await asyncio.to_thread(self._missing)
        num_done = 0
        for adapter_name, version in missing[: self._max_versions]:
            num_done += await self._profile(adapter_name, version)
        if len(missing) > self._max_versions:
            _log.info("reprofiled", num_versions=num_done, num_left=len(missing) - self._max_versions)
            return True
        encoder_id = self._encoder.encoder_id

        def changed_over(record: CatalogRecord, names: frozenset[str]) -> CatalogRecord:
            del names
            return replace(record, encoder_id=encoder_id, encoder_since=time.time())

        record = await asyncio.to_thread(self._registrations.record)
        if record.encoder_id and record.encoder_id != encoder_id:
            generation = await self._publisher.change_record(changed_over)
            _log.info("encoder_changed", encoder_id=encoder_id, catalog_generation=generation)
        else:
            # A change-over that was cut in the middle is completed here.
            await self._publisher.reconcile()
        return False

    def _is_outdated(self, record: CatalogRecord) -> bool:
        is_outdated = record.encoder_id not in {"", self._encoder.encoder_id} and (
            record.encoder_since > self._started_at
        )
        if is_outdated:
            _log.warning("encoder_outdated", encoder_id=self._encoder.encoder_id, catalog_encoder_id=record.encoder_id)
        return is_outdated

    def _missing(self) -> list[tuple[str, AdapterVersion]]:
        """Versions that have texts but no profile under the encoder; current ones first."""
        encoder_id = self._encoder.encoder_id
        found: list[tuple[bool, str, AdapterVersion]] = []
        for registration in self._registrations.all():
            for version in registration.versions:
                is_wanted = version.state in _PROFILED_STATES and not registration.is_retired
                if is_wanted and version.profile_ids and encoder_id not in version.profile_ids:
                    is_current = version.version == registration.current
                    found.append((not is_current, registration.adapter_name, version))
        return [(name, version) for _, name, version in sorted(found, key=lambda item: item[:2])]

    async def _profile(self, adapter_name: str, version: AdapterVersion) -> int:
        """Embed a version's texts and note the profile; 0 if the texts are lost."""
        encoder_id = self._encoder.encoder_id
        old_id = newest_profile(version, encoder_id)
        assert old_id is not None, "versions without texts are not looked at"
        try:
            made = await asyncio.to_thread(self._embedded, version.revision, old_id)
        except UnknownAdapter as error:
            # It stays without a profile: it can be named, and new samples heal it.
            _log.error("samples_lost", adapter=adapter_name, version=version.version, reason=error.message)
            made = None

        def profiled(known: KnownName) -> Registration:
            registration = known.registration
            assert registration is not None, "names are never forgotten"
            stored = registration.numbered(version.version)
            if dict(stored.profile_ids) != dict(version.profile_ids):
                return registration  # samples were added meanwhile, under this encoder
            if made is None:
                return registration.replacing(replace(stored, profile_ids={}))
            return registration.replacing(stored.profiled(encoder_id, made))

        record = await asyncio.to_thread(self._registrations.record)
        if record.encoder_id == encoder_id:
            # The catalogue has changed over already: what comes late is shown at once.
            await self._publisher.change(adapter_name, profiled)
        else:
            await self._publisher.note(adapter_name, profiled)
        return int(made is not None)

    def _embedded(self, revision: str, old_id: str) -> str:
        texts = self._profiles.texts(revision, old_id)
        source = self._profiles.record(revision, old_id).samples_source
        embedded = SampleProfile(
            texts=texts,
            embeddings_mE=self._encoder.encode(texts),
            encoder_id=self._encoder.encoder_id,
            source=source,
        )
        return self._profiles.write(revision, embedded).profile_id
