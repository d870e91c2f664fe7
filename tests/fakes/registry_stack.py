"""A whole registry on a folder of one's own: real disk, real checks, real REST door; Redis and Celery are fakes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import httpx
from pydantic import SecretStr

from services.registry.audit import ConfusabilityAudit
from services.registry.catalog import Catalog
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.rest import RestDependencies, create_rest_app
from services.registry.infra.artifact_store import DiskArtifactStore
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.registration_store import DiskRegistrationStore
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.stored_components import StoredComponents
from services.registry.infra.upload_source import ArchiveLimits, unpack
from services.registry.ingestion import Ingestion
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.recovery import JobRecovery
from services.registry.validation import AdapterValidator, ValidationLimits
from tests.builders.adapters import MODULE_SHAPES
from tests.fakes.registry_ports import FakeBaseModel, InMemoryCatalogIndex, InMemoryJobStore, InMemoryQueue
from tests.fakes.router_encoder import HashEncoder

MAX_UPLOAD_BYTES = 4 * 1024 * 1024
ARCHIVE_LIMITS = ArchiveLimits(max_members=8, max_unpacked_bytes=64 * 1024 * 1024, max_ratio=100)


class RegistryStack:
    """All parts of a registry, each open to a test."""

    def __init__(
        self, data_dir: Path, *, allowed: tuple[Path, ...] = (), max_eager_bytes: int = 1 << 20, key: str | None = None
    ) -> None:
        self.data_dir = data_dir
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
            lease_seconds=1.0,
        )
        self.recovery = JobRecovery(
            staging=self.staging,
            jobs=self.jobs,
            queue=self.queue,
            registrations=self.registrations,
            artifacts=self.artifacts,
            interval_seconds=60,
        )
        self.components = StoredComponents(self.artifacts, root=data_dir / "artifacts")
        self.audit = ConfusabilityAudit(catalog=self.catalog, components=self.components)
        self.app = create_rest_app(
            RestDependencies(
                intake=self.intake,
                catalog=self.catalog,
                jobs=self.jobs,
                metrics=RegistryMetrics(catalog=self.catalog, jobs=self.jobs),
                is_ready=lambda: True,
                max_upload_bytes=MAX_UPLOAD_BYTES,
                audit=self.audit,
                components=self.components,
            ),
            admin_api_key=SecretStr(key) if key else None,
        )

    def client(self) -> httpx.AsyncClient:
        """An HTTP client that talks to the app without a socket."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://registry")

    async def work(self) -> None:
        """Be the ingest process until the queue is empty."""
        while self.queue.job_ids:
            await self.ingestion.run(self.queue.job_ids.popleft())

    def stored(self) -> list[str]:
        """Every file that says something was kept."""
        return sorted(str(path.relative_to(self.data_dir)) for path in self.data_dir.rglob("*") if path.is_file())
