"""A whole registry on a folder of one's own: real disk, real checks, real REST door; Redis and Celery are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
from pydantic import SecretStr

from services.common.auth import AccessKey, FixedKeys, KeyRing
from services.registry.cancellation import JobCancellation
from services.registry.catalog import Catalog
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.event_stream import EventStreams
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.rest import create_rest_app
from services.registry.infra.artifact_store import DiskArtifactStore
from services.registry.infra.audit_log import DiskAuditLog
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.registration_store import DiskRegistrationStore
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.upload_source import ArchiveLimits, unpack
from services.registry.ingestion import Ingestion
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.recovery import JobRecovery
from services.registry.validation import AdapterValidator, ValidationLimits
from tests.builders.adapters import MODULE_SHAPES
from tests.fakes.registry_ports import (
    FakeBaseModel,
    InMemoryCatalogIndex,
    InMemoryIdempotencyStore,
    InMemoryJobStore,
    InMemoryQueue,
)
from tests.fakes.router_encoder import HashEncoder

MAX_UPLOAD_BYTES = 4 * 1024 * 1024
ARCHIVE_LIMITS = ArchiveLimits(max_members=8, max_unpacked_bytes=64 * 1024 * 1024, max_ratio=100)


class RegistryStack:
    """All parts of a registry, each open to a test.

    Args:
        data_dir: everything it keeps.
        allowed: folders adapters may be ingested from.
        max_eager_bytes: uploads up to this are checked at once.
        key: the one admin key; anybody may do anything without one.
        keys: more of them, with scopes.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        allowed: tuple[Path, ...] = (),
        max_eager_bytes: int = 1 << 20,
        key: str | None = None,
        keys: Sequence[AccessKey] = (),
    ) -> None:
        self.data_dir = data_dir
        known = [*keys, *([AccessKey.of_secret("admin", SecretStr(key))] if key else [])]
        self.keys = KeyRing([FixedKeys(known)] if known else [], is_anonymous_allowed=True)
        self.audit = DiskAuditLog(data_dir / "audit", max_file_bytes=1 << 20, max_files=4)
        self.streams = EventStreams()
        self.staging = DiskStagingArea(data_dir / "incoming")
        self.registrations = DiskRegistrationStore(data_dir / "adapters")
        self.artifacts = DiskArtifactStore(data_dir / "artifacts")
        self.index = InMemoryCatalogIndex()
        self.jobs = InMemoryJobStore()
        self.queue = InMemoryQueue()
        self.encoder = HashEncoder()
        self.base = base = FakeBaseModel(MODULE_SHAPES)
        self.catalog = Catalog(index=self.index, registrations=self.registrations, artifacts=self.artifacts)
        validator = AdapterValidator(
            reader=HardenedSafetensorsReader(),
            base=base,
            limits=ValidationLimits(max_lora_rank=16, max_eager_bytes=max_eager_bytes),
        )
        sources = {
            SourceKind.PATH: LocalFolderSource(allowed_folders=allowed, max_bytes=MAX_UPLOAD_BYTES),
            SourceKind.HUB: HubSource(is_allowed=True, max_bytes=MAX_UPLOAD_BYTES),
        }
        self.intake = Intake(
            staging=self.staging,
            jobs=self.jobs,
            queue=self.queue,
            catalog=self.catalog,
            validator=validator,
            sources=sources,
            unpack=partial(unpack, limits=ARCHIVE_LIMITS),
            taken_names=frozenset({base.name}),
        )
        self.ingestion = Ingestion(
            staging=self.staging,
            jobs=self.jobs,
            catalog=self.catalog,
            artifacts=self.artifacts,
            validator=validator,
            base=base,
            encoder=self.encoder,
            sources=sources,
            audit=self.audit,
            lease_seconds=1.0,
        )
        self.cancellation = JobCancellation(jobs=self.jobs, staging=self.staging)
        self.recovery = JobRecovery(
            staging=self.staging,
            jobs=self.jobs,
            queue=self.queue,
            registrations=self.registrations,
            artifacts=self.artifacts,
            interval_seconds=60,
        )
        self.app = create_rest_app(
            RestDependencies(
                intake=self.intake,
                catalog=self.catalog,
                jobs=self.jobs,
                cancellation=self.cancellation,
                idempotency=InMemoryIdempotencyStore(),
                audit=self.audit,
                metrics=RegistryMetrics(catalog=self.catalog, jobs=self.jobs, queue=self.queue),
                streams=self.streams,
                is_ready=lambda: True,
                max_upload_bytes=MAX_UPLOAD_BYTES,
                heartbeat_seconds=0.2,
                load_wait_seconds=0.5,
            ),
            keys=self.keys,
        )

    def client(self) -> httpx.AsyncClient:
        """An HTTP client that talks to the app without a socket."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def work(self) -> None:
        """Be the ingest process until the queue is empty."""
        while self.queue.job_ids:
            await self.ingestion.run(self.queue.job_ids.popleft())

    def stored(self) -> list[str]:
        """Every file that says something was kept of an adapter."""
        files = (path.relative_to(self.data_dir) for path in self.data_dir.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] != "audit")
