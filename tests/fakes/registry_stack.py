"""A whole registry on a folder of one's own: real disk, real checks, real REST door; Redis and Celery are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
from pydantic import SecretStr

from services.common.auth import AccessKey, FixedKeys, KeyRing
from services.registry.adapter_profiling import AdapterProfiling
from services.registry.cancellation import JobCancellation
from services.registry.catalog import Catalog
from services.registry.collection import CollectionPolicy, Collector
from services.registry.confusability_audit import ConfusabilityAudit
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.event_stream import EventStreams
from services.registry.entrypoints.lifecycle_routes import LifecycleDependencies, lifecycle_routes
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.rest import create_rest_app
from services.registry.fetching import Fetcher
from services.registry.infra.archive import ArchiveLimits, unpack
from services.registry.infra.assembly import assemble
from services.registry.infra.audit_log import DiskAuditLog
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.object_source import ObjectStoreSource
from services.registry.infra.registered_pool import RegisteredPool
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.store_migration import DataFolder
from services.registry.infra.stored_components import StoredComponents
from services.registry.infra.transfer import FetchLimits
from services.registry.infra.url_source import UrlSource
from services.registry.ingestion import Ingestion
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.lifecycle import AdapterLifecycle
from services.registry.missing_profiles import MissingProfiles, ProfileRetryPolicy
from services.registry.pool_check import PoolCheck
from services.registry.ports import AdapterSource, ProfileTexts, TextEncoder
from services.registry.profile_orders import ProfileOrders
from services.registry.publication import CatalogPublisher, Published
from services.registry.recovery import JobRecovery
from services.registry.reprofiling import Reprofiling
from services.registry.validation import AdapterValidator, ValidationLimits
from tests.builders.adapters import MODULE_SHAPES
from tests.builders.registry_values import a_draft, a_profile
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
FETCH_LIMITS = FetchLimits(max_bytes=MAX_UPLOAD_BYTES, max_seconds=60.0)


class RegistryStack:
    """All parts of a registry, each open to a test.

    Args:
        data_dir: everything it keeps.
        allowed: folders adapters may be ingested from.
        allowed_hosts: hosts archives may be fetched from.
        max_eager_bytes: uploads up to this are checked at once.
        key: the one admin key; anybody may do anything without one.
        keys: more of them, with scopes.
        index: the published catalogue; one of its own if None.
        encoder: embeds sample texts.
        holds_new_versions: whether new versions wait in quarantine.
        collection: what garbage collection leaves alone.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        allowed: tuple[Path, ...] = (),
        allowed_hosts: tuple[str, ...] = (),
        max_eager_bytes: int = 1 << 20,
        key: str | None = None,
        keys: Sequence[AccessKey] = (),
        index: InMemoryCatalogIndex | None = None,
        encoder: TextEncoder | None = None,
        holds_new_versions: bool = False,
        profile_texts: Sequence[ProfileTexts] = (),
        collection: CollectionPolicy | None = None,
    ) -> None:
        self.data_dir = data_dir
        known = [*keys, *([AccessKey.of_secret("admin", SecretStr(key))] if key else [])]
        self.keys = KeyRing([FixedKeys(known)] if known else [], is_anonymous_allowed=True)
        self.audit = DiskAuditLog(data_dir / "audit", max_file_bytes=1 << 20, max_files=4)
        self.streams = EventStreams()
        self.staging = DiskStagingArea(data_dir / "incoming")
        self.data = DataFolder(data_dir)
        self.registrations = self.data.registrations
        self.artifacts = self.data.artifacts
        self.profiles = self.data.profiles
        self.index = index or InMemoryCatalogIndex()
        self.jobs = InMemoryJobStore()
        self.queue = InMemoryQueue()
        self.encoder = encoder or HashEncoder()
        self.base = base = FakeBaseModel(MODULE_SHAPES)
        self.publisher = CatalogPublisher(
            index=self.index,
            registrations=self.registrations,
            artifacts=self.artifacts,
            profiles=self.profiles,
        )
        self.catalog = Catalog(
            index=self.index,
            registrations=self.registrations,
            artifacts=self.artifacts,
            profiles=self.profiles,
            publisher=self.publisher,
            holds_new_versions=holds_new_versions,
        )
        self.orders = ProfileOrders(
            staging=self.staging,
            jobs=self.jobs,
            queue=self.queue,
            registrations=self.registrations,
            sources=[texts.source for texts in profile_texts],
        )
        self.missing_profiles = MissingProfiles(
            publisher=self.publisher,
            registrations=self.registrations,
            orders=self.orders,
            policy=ProfileRetryPolicy(max_attempts=3, wait_seconds=100.0),
        )
        self.lifecycle = AdapterLifecycle(
            publisher=self.publisher,
            registrations=self.registrations,
            profiles=self.profiles,
            taken_names=frozenset({base.name}),
            orders=self.orders,
        )
        self.collector = Collector(
            publisher=self.publisher,
            registrations=self.registrations,
            artifacts=self.artifacts.folders,
            profiles=self.profiles.folders,
            policy=collection or CollectionPolicy(keep_versions=2, grace_seconds=3600),
        )
        self.reprofiling = Reprofiling(
            publisher=self.publisher,
            registrations=self.registrations,
            profiles=self.profiles,
            encoder=self.encoder,
            max_versions=2,
        )
        validator = AdapterValidator(
            reader=HardenedSafetensorsReader(),
            base=base,
            limits=ValidationLimits(max_lora_rank=16, max_eager_bytes=max_eager_bytes),
        )
        unpack_limited = partial(unpack, limits=ARCHIVE_LIMITS)
        self.sources: dict[SourceKind, AdapterSource] = {
            SourceKind.PATH: LocalFolderSource(allowed_folders=allowed, limits=FETCH_LIMITS, unpack=unpack_limited),
            SourceKind.HUB: HubSource(is_allowed=True, limits=FETCH_LIMITS, cache=data_dir / "hub"),
            SourceKind.OBJECT: ObjectStoreSource(
                allowed_prefixes=("memory://pool",),
                limits=FETCH_LIMITS,
                unpack=unpack_limited,
                store_options={"memory": {}},
            ),
            SourceKind.URL: UrlSource(allowed_hosts=allowed_hosts, limits=FETCH_LIMITS, unpack=unpack_limited),
        }
        self.intake = Intake(
            staging=self.staging,
            jobs=self.jobs,
            queue=self.queue,
            catalog=self.catalog,
            validator=validator,
            sources=self.sources,
            unpack=unpack_limited,
            assemble=assemble,
            taken_names=frozenset({base.name}),
        )
        self.ingestion = Ingestion(
            staging=self.staging,
            jobs=self.jobs,
            catalog=self.catalog,
            lifecycle=self.lifecycle,
            profiling=AdapterProfiling(
                lifecycle=self.lifecycle,
                artifacts=self.artifacts,
                profiles=self.profiles,
                encoder=self.encoder,
                sources=profile_texts,
            ),
            orders=self.orders,
            missing_profiles=self.missing_profiles,
            artifacts=self.artifacts,
            profiles=self.profiles,
            validator=validator,
            base=base,
            encoder=self.encoder,
            fetcher=Fetcher(sources=self.sources, assemble=assemble),
            pool_check=PoolCheck(source=RegisteredPool(self.registrations), artifacts=self.artifacts),
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
        self.components = StoredComponents(self.artifacts, root=data_dir / "artifacts")
        self.confusability = ConfusabilityAudit(catalog=self.catalog, components=self.components)
        self.metrics = RegistryMetrics(
            catalog=self.catalog,
            jobs=self.jobs,
            queue=self.queue,
            stores={"artifacts": self.artifacts.folders, "profiles": self.profiles.folders},
            free_bytes=lambda: 1 << 40,
        )
        self.app = create_rest_app(
            RestDependencies(
                intake=self.intake,
                catalog=self.catalog,
                components=self.components,
                confusability=self.confusability,
                jobs=self.jobs,
                cancellation=self.cancellation,
                idempotency=InMemoryIdempotencyStore(),
                audit=self.audit,
                metrics=self.metrics,
                streams=self.streams,
                is_ready=lambda: True,
                max_upload_bytes=MAX_UPLOAD_BYTES,
                heartbeat_seconds=0.2,
                load_wait_seconds=0.5,
            ),
            keys=self.keys,
            more_routes=[
                lifecycle_routes(
                    LifecycleDependencies(
                        lifecycle=self.lifecycle, intake=self.intake, collector=self.collector, orders=self.orders
                    )
                )
            ],
        )

    def client(self) -> httpx.AsyncClient:
        """An HTTP client that talks to the app without a socket."""
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def publish(
        self, name: str = "a", *, seed: int = 0, is_replacement: bool = True, job_id: str = "0" * 32
    ) -> Published:
        """Store and publish an adapter without an ingest; each seed is other content."""
        manifest = self.artifacts.write(a_draft(seed=seed))
        profile = self.profiles.write(manifest.revision, a_profile(seed=seed))
        return await self.catalog.publish(
            manifest, adapter_name=name, job_id=job_id, is_replacement=is_replacement, profile=profile
        )

    async def work(self) -> None:
        """Be the ingest process until the queue is empty."""
        while self.queue.job_ids:
            await self.ingestion.run(self.queue.job_ids.popleft())

    def stored(self) -> list[str]:
        """Every file that says something was kept of an adapter."""
        files = (path.relative_to(self.data_dir) for path in self.data_dir.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] != "audit")
