"""Ports of what is kept on the disk: versions, their profiles, the records of names, accepted files. All block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.character_grams import SampleGrams
from hilora.update_statistics import UpdateStatistics
from services.registry.artifact import ArtifactDraft, ArtifactManifest, ProfileRecord, SampleProfile
from services.registry.catalog_entry import CatalogRecord
from services.registry.job import IngestRequest
from services.registry.registration import Registration
from services.registry.validation_report import ValidationReport


class ArtifactStore(Protocol):
    """Immutable adapter versions. Blocking."""

    def write(self, draft: ArtifactDraft) -> ArtifactManifest:
        """Store a version, all or nothing; equal content is stored once, keeps its first manifest, and counts as fresh
        again for `StoreCleaner.idle_seconds`."""
        ...

    def manifest(self, revision: str) -> ArtifactManifest:
        """What is stored. Raises UnknownAdapter (`unknown_revision`) if nothing is, or it cannot be read."""
        ...

    def find(self, revision_prefix: str) -> str | None:
        """The one revision that begins with a prefix of hex digits; `None` if there is none, or several."""
        ...

    def sweep(self) -> None:
        """Remove what a crash left half written."""
        ...

    def open_components(self, revision: str, basis: RocBasis) -> BinaryIO:
        """The components file of one basis, at its beginning; the caller closes it. Raises UnknownAdapter."""
        ...

    def components(self, revision: str, basis: RocBasis) -> DecomposedAdapter:
        """The components in one basis. Raises UnknownAdapter."""
        ...

    def validation_report(self, revision: str) -> ValidationReport | None:
        """What was found when it was ingested; `None` for a version older than such reports. Raises UnknownAdapter."""
        ...

    def put_validation_report(self, revision: str, report: ValidationReport) -> None:
        """Replace what is said about a version, in one step: it is no part of its identity. Raises UnknownAdapter."""
        ...

    def card(self, revision: str) -> str | None:
        """The model card that came with a version; `None` if there was none, or nothing is stored."""
        ...


class ComponentReader(Protocol):
    """Reads what stored versions do. Blocking."""

    def svd_components(self, revision: str) -> DecomposedAdapter:
        """The components in the SVD basis. Raises UnknownAdapter (`unknown_revision`)."""
        ...

    def statistics(self, revision: str) -> UpdateStatistics:
        """The sizes of the update. Raises UnknownAdapter (`unknown_revision`)."""
        ...


class PoolSource(Protocol):
    """Tells which versions a new adapter is compared with. Blocking."""

    def registered_versions(self) -> Mapping[str, str]:
        """The revision that each name in use means now, by adapter name."""
        ...


class ProfileStore(Protocol):
    """Immutable profiles: the sample texts of an artifact and their embeddings under one encoder. Blocking."""

    def write(self, revision: str, profile: SampleProfile) -> ProfileRecord:
        """Store a profile beside its artifact, all or nothing; equal ones are stored once."""
        ...

    def record(self, revision: str, profile_id: str) -> ProfileRecord:
        """What is stored. Raises UnknownAdapter (`unknown_profile`)."""
        ...

    def embeddings(self, revision: str, profile_id: str) -> NDArray[np.float32]:
        """`[m, E]`. Raises UnknownAdapter (`unknown_profile`)."""
        ...

    def grams(self, revision: str, profile_id: str) -> SampleGrams:
        """How the sample texts are written, in their order. Raises UnknownAdapter (`unknown_profile`)."""
        ...

    def texts(self, revision: str, profile_id: str) -> tuple[str, ...]:
        """The sample texts, in order. Raises UnknownAdapter (`unknown_profile`)."""
        ...

    def sweep(self) -> None:
        """Remove what a crash left half written."""
        ...


class StoreCleaner(Protocol):
    """Takes unreferenced content out of a store in two steps, so that a mistake, or a race with a publisher, can be
    undone until the second. Blocking. Keys are a revision, or a revision and a profile id joined by `/`."""

    def stored(self) -> list[str]:
        """Keys of everything that can be read."""
        ...

    def idle_seconds(self, key: str) -> float:
        """How long ago the content was last written; 0 if it is not there."""
        ...

    def touch(self, key: str) -> bool:
        """Let the content count as just written; whether it is there."""
        ...

    def size_bytes(self, key: str) -> int:
        """Size of the content on disk; 0 if it is not there."""
        ...

    def set_aside(self, key: str) -> None:
        """Make the content unreadable, but keep it. Nothing happens if it is not there."""
        ...

    def aside(self) -> list[str]:
        """Keys of what was set aside."""
        ...

    def aside_seconds(self, key: str) -> float:
        """How long ago the content was set aside."""
        ...

    def restore(self, key: str) -> None:
        """Make what was set aside readable again. Nothing happens if it is not aside, or readable already."""
        ...

    def purge(self, key: str) -> None:
        """Delete what was set aside for ever."""
        ...


class RegistrationStore(Protocol):
    """Which versions each name has and means; survives every crash. Blocking."""

    def put(self, registration: Registration, *, replaces: Registration | None) -> None:
        """Replace the record of a name: afterwards either the old or the new one is there, never neither.

        Raises:
            Conflict: `registration_changed`, if the record is not (any more) the one that is to be replaced.
        """
        ...

    def get(self, adapter_name: str) -> Registration | None:
        """The record of a name, a tombstone included."""
        ...

    def all(self) -> list[Registration]:
        """Every readable record, tombstones included, by name."""
        ...

    def record(self) -> CatalogRecord:
        """What belongs to the catalogue as a whole."""
        ...

    def put_record(self, record: CatalogRecord, *, replaces: CatalogRecord) -> None:
        """Replace it in one step. Raises Conflict like `put`."""
        ...


class StagingArea(Protocol):
    """Accepted adapters until they are ingested: one folder a job. Blocking."""

    def create(self, job_id: str) -> Path:
        """A fresh empty folder for the files of a job that is not accepted yet."""
        ...

    def accept(self, request: IngestRequest) -> None:
        """Make folder and request durable. Only after this does the job exist."""
        ...

    def request(self, job_id: str) -> IngestRequest | None:
        """The accepted request, or `None` if there is none (any more)."""
        ...

    def files(self, job_id: str) -> Path:
        """The folder of a job, whether it exists or not."""
        ...

    def accepted(self, *, besides: Collection[str] = ()) -> list[IngestRequest]:
        """All accepted requests, oldest first, without those of the jobs `besides`."""
        ...

    def discard(self, job_id: str) -> None:
        """Forget a job's files; nothing happens if they are gone already."""
        ...

    def sweep(self) -> None:
        """Remove what crashes left behind: folders that were never accepted, or only half discarded."""
        ...
