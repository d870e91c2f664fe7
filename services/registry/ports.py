"""What the registry's work needs from the world.

Asynchronous ports reach another process and may raise `RegistryUnavailable`; blocking ports touch the disk or compute,
and are called in a thread wherever an event loop must not wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hilora.adapter import DecomposedAdapter, RocBasis
from services.registry.artifact import (
    ArtifactDraft,
    ArtifactManifest,
    ProfileRecord,
    ProfileSubject,
    SampleProfile,
    SamplesSource,
)
from services.registry.catalog_entry import CatalogChange, CatalogEntry, CatalogNews, CatalogRecord, CatalogSnapshot
from services.registry.job import IngestJob, IngestRequest
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

    def components(self, revision: str) -> DecomposedAdapter:
        """The components in the basis of training. Raises UnknownAdapter."""
        ...

    def validation_report(self, revision: str) -> ValidationReport | None:
        """What was found when it was ingested; `None` for a version older than such reports. Raises UnknownAdapter."""
        ...

    def card(self, revision: str) -> str | None:
        """The model card that came with a version; `None` if there was none, or nothing is stored."""
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

    def accepted(self) -> list[IngestRequest]:
        """All accepted requests, oldest first."""
        ...

    def discard(self, job_id: str) -> None:
        """Forget a job's files; nothing happens if they are gone already."""
        ...

    def sweep(self) -> None:
        """Remove what crashes left behind: folders that were never accepted, or only half discarded."""
        ...


class CatalogTransaction(Protocol):
    """The right to publish, held by one process at a time."""

    @property
    def catalog_generation(self) -> int | None:
        """The published generation; `None` if the index is empty, as after a loss of its data."""
        ...

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        """The published entry of a name."""
        ...

    async def is_held(self) -> bool:
        """Whether the right is still ours."""
        ...

    async def commit(self, change: CatalogChange) -> None:
        """Publish one step. Raises Conflict (`catalog_lock_lost`) if the right was lost meanwhile."""
        ...

    async def replace(self, snapshot: CatalogSnapshot) -> None:
        """Publish a whole catalogue; every follower has to take a new snapshot. Raises like `commit`."""
        ...


class CatalogIndex(Protocol):
    """The published catalogue and its changes. Fast, shared by processes, may lose everything."""

    async def read(self) -> CatalogSnapshot | None:
        """Generation and entries of one moment; `None` if the index is empty."""
        ...

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        """The published entry of a name."""
        ...

    async def generation(self) -> int | None:
        """The published generation; `None` if the index is empty."""
        ...

    def publishing(self) -> AbstractAsyncContextManager[CatalogTransaction]:
        """Wait for the right to publish. Raises RegistryUnavailable (`catalog_busy`) if others keep it too long."""
        ...

    def follow(self, after_generation: int, *, heartbeat_seconds: float) -> AsyncIterator[CatalogNews]:
        """Changes after a generation, in order and without a gap, with heartbeats in between.

        Ends after a `CatalogResync`: from there on only a new snapshot helps.
        """
        ...


class Lease(Protocol):
    """The right to work on one job for a short time."""

    async def extend(self) -> bool:
        """Keep it for another period; `False` if it was lost."""
        ...

    async def release(self) -> None:
        """Give it back; nothing happens if it was lost."""
        ...


class JobStore(Protocol):
    """The observable states of ingests; keeps a bounded number of finished ones."""

    async def put(self, job: IngestJob) -> None:
        """Create or replace a job's state."""
        ...

    async def get(self, job_id: str) -> IngestJob | None:
        """The state of a job."""
        ...

    async def all(self) -> list[IngestJob]:
        """Every known job, newest first."""
        ...

    async def unfinished(self) -> list[IngestJob]:
        """The jobs that still have work to be done, oldest first."""
        ...

    async def claim(self, job_id: str) -> Lease | None:
        """The right to work on a job, or `None` if another process has it."""
        ...

    async def is_claimed(self, job_id: str) -> bool:
        """Whether some process works on a job."""
        ...


class IngestQueue(Protocol):
    """Hands jobs to the ingest process."""

    async def enqueue(self, job_id: str) -> None:
        """Have the job run at least once."""
        ...

    async def waiting(self) -> int:
        """Number of jobs that no process has taken yet."""
        ...


class ProgressListener(Protocol):
    """Hears how far a fetch is. Called in the fetching thread, often: once a piece."""

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take note; `total_bytes` is `None` where the source does not say. Raises Unavailable to stop the fetch."""
        ...


class AdapterSource(Protocol):
    """Brings an adapter's files in from a place the registry can read. Blocking."""

    def check(self, reference: str) -> None:
        """Refuse a reference that can be refused at once. Raises InvalidInput."""
        ...

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """Write config, weights (whole, or shards with their index), samples and card (where there are any).

        Returns:
            The reference made exact, as provenance keeps it; free of credentials.

        Raises:
            InvalidInput: not found, not allowed, too large, or too slow.
            InvalidAdapter: the files there make no adapter, or their archive is refused.
            Exhausted: the source wants to be asked later.
            Unavailable: the source does not answer; another attempt goes on where this one ended, if it can.
        """
        ...


class ArchiveUnpacker(Protocol):
    """Takes the adapter's files out of an uploaded archive. Blocking."""

    def __call__(self, archive: Path, folder: Path) -> str | None:
        """Write the files into a folder; the name of the one folder inside the archive, if there is one.

        Raises UnsafeArchive or InvalidAdapter.
        """
        ...


class FolderAssembler(Protocol):
    """Makes of the files that came in those that are checked. Blocking, and harmless when repeated."""

    def __call__(self, folder: Path) -> None:
        """Join shards to one weights file, and drop a card that is no text. Raises InvalidAdapter."""
        ...


class TensorFileReader(Protocol):
    """Reads a safetensors file from a stranger. Blocking."""

    def header(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors' shapes and dtypes as meta tensors, without reading data. Raises InvalidAdapter."""
        ...

    def tensors(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors. Raises InvalidAdapter."""
        ...


class BaseModel(Protocol):
    """The served base model, as far as adapters have to fit it. Blocking."""

    @property
    def name(self) -> str:
        """What clients call it."""
        ...

    def modules(self) -> Mapping[str, tuple[int, int]]:
        """`(out-features, in-features)` of every module that an adapter may target, by path: linear layers, embeddings,
        the linear layers of each expert. Raises InvalidInput if it cannot be read."""
        ...

    def tied_modules(self) -> frozenset[str]:
        """Paths of those modules that share one weight, as embedding and output often do. Raises like `modules`."""
        ...


class ProfileTexts(Protocol):
    """Finds or makes texts that stand for an adapter's task, where nobody sent any."""

    @property
    def source(self) -> SamplesSource:
        """What the profile's record calls it."""
        ...

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        """Texts for an adapter, each once; none if this source has nothing to say about it.

        Raises:
            Exhausted: the source wants to be asked later.
            Unavailable: the source is away; trying again later is sensible.
        """
        ...


class TextEncoder(Protocol):
    """Turns sample texts into points of one space. Blocking."""

    @property
    def encoder_id(self) -> str:
        """Equal for two encoders exactly if they give the same vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings `[len(texts), E]`, each of norm 1."""
        ...
