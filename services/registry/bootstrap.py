"""Wires the registry and its ingest process from their settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import Celery
from fastapi import FastAPI
from redis.asyncio import Redis

from hilora.access import AdapterAccess
from hilora.errors import HiloraError, RegistryUnavailable
from services.common.http_server import HttpServer
from services.common.lifecycle import Component, ComponentGroup
from services.common.rpc_server import RpcServer
from services.common.sequence_encoder import SentenceTransformerEncoder
from services.registry.adapter_profiling import AdapterProfiling
from services.registry.catalog import Catalog
from services.registry.collection import CollectionPolicy, Collector
from services.registry.entrypoints.lifecycle_routes import LifecycleDependencies
from services.registry.entrypoints.lifecycle_rpc import LIFECYCLE_SERVICE_NAME, LifecycleServicer
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.profile_tasks import register_reprofile_task, start_reprofiling
from services.registry.entrypoints.rest import RestDependencies, create_rest_app
from services.registry.entrypoints.rpc import SERVICE_NAME, RegistryServicer, register_with
from services.registry.entrypoints.tasks import (
    INGEST_QUEUE_KEY,
    INGEST_TASK,
    build_celery_app,
    register_ingest_task,
    run_ingest_process,
)
from services.registry.fetching import Fetcher
from services.registry.infra.archive import ArchiveLimits, unpack
from services.registry.infra.assembly import assemble
from services.registry.infra.base_model import TransformersBaseModel
from services.registry.infra.celery_queue import CeleryIngestQueue
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.object_source import ObjectStoreSource
from services.registry.infra.profile_sources import build_profile_texts
from services.registry.infra.redis_catalog import RedisCatalogIndex
from services.registry.infra.redis_connection import (
    KEY_PREFIX,
    RedisLock,
    broker_url_of,
    held,
    open_redis,
    translated_redis_errors,
)
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.infra.registered_pool import RegisteredPool
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.store_migration import DataFolder
from services.registry.infra.transfer import FetchLimits
from services.registry.infra.url_source import UrlSource
from services.registry.ingestion import Ingestion
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.lifecycle import AdapterLifecycle
from services.registry.maintenance import Maintenance
from services.registry.pool_check import PoolCheck
from services.registry.ports import AdapterSource, ArchiveUnpacker, ProfileTexts
from services.registry.profile_orders import ProfileOrders
from services.registry.publication import CatalogPublisher
from services.registry.recovery import JobRecovery
from services.registry.reprofiling import Reprofiling
from services.registry.settings import RegistrySettings
from services.registry.validation import AdapterValidator, ValidationLimits

_SECONDS_BETWEEN_REDIS_ATTEMPTS = 0.1
_STORE_LOCK = f"{KEY_PREFIX}store:lock"
_STORE_LEASE_SECONDS = 600.0
"""Migrating a large store reads and writes each manifest once."""


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What service and ingest process have in common."""

    redis: Redis
    celery: Celery
    staging: DiskStagingArea
    queue: CeleryIngestQueue
    data: DataFolder
    jobs: RedisJobStore
    publisher: CatalogPublisher
    catalog: Catalog
    lifecycle: AdapterLifecycle
    profile_texts: tuple[ProfileTexts, ...]
    orders: ProfileOrders
    base: TransformersBaseModel
    validator: AdapterValidator
    sources: Mapping[SourceKind, AdapterSource]
    unpack: ArchiveUnpacker


class RegistryService:
    """The registry without its ingest process; a component.

    `rest_app` exists from the beginning, so that another server can mount it; it answers 503 on `/readyz` before
    `start` has returned.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        shared = _build_shared(settings)
        intake = Intake(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=shared.queue,
            catalog=shared.catalog,
            validator=shared.validator,
            sources=shared.sources,
            unpack=shared.unpack,
            assemble=assemble,
            taken_names=_taken_names(shared.base),
        )
        collector = Collector(
            publisher=shared.publisher,
            registrations=shared.data.registrations,
            artifacts=shared.data.artifacts.folders,
            profiles=shared.data.profiles.folders,
            policy=CollectionPolicy(
                keep_versions=settings.keep_versions, grace_seconds=settings.collection_grace_seconds
            ),
        )
        lifecycle_servicer = LifecycleServicer(lifecycle=shared.lifecycle, admin_api_key=settings.admin_api_key)
        self._shared = shared
        self._redis_wait_seconds = settings.redis_wait_seconds
        self._is_ready = False
        self._servicer = RegistryServicer(
            catalog=shared.catalog,
            jobs=shared.jobs,
            intake=intake,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
            admin_api_key=settings.admin_api_key,
        )
        self._rpc = RpcServer(
            host=settings.rpc_host,
            port=settings.rpc_port,
            register=[partial(register_with, self._servicer), lifecycle_servicer.register],
            service_names=[SERVICE_NAME, LIFECYCLE_SERVICE_NAME],
        )
        self._rest_app = create_rest_app(
            RestDependencies(
                intake=intake,
                catalog=shared.catalog,
                jobs=shared.jobs,
                metrics=RegistryMetrics(catalog=shared.catalog, jobs=shared.jobs),
                is_ready=lambda: self._is_ready,
                max_upload_bytes=settings.max_upload_bytes,
                lifecycle=LifecycleDependencies(
                    lifecycle=shared.lifecycle, intake=intake, collector=collector, orders=shared.orders
                ),
            ),
            admin_api_key=settings.admin_api_key,
        )
        recovery = JobRecovery(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=shared.queue,
            registrations=shared.data.registrations,
            artifacts=shared.data.artifacts,
            interval_seconds=settings.recovery_interval_seconds,
        )
        maintenance = Maintenance(
            catalog=shared.catalog,
            collector=collector,
            profiles=shared.data.profiles,
            interval_seconds=settings.maintenance_interval_seconds,
        )
        self._http = (
            HttpServer(app=self._rest_app, host=settings.rest_host, port=settings.rest_port)
            if settings.has_own_rest_port
            else None
        )
        doors: list[Component] = [self._rpc, self._http] if self._http else [self._rpc]
        self._group = ComponentGroup([recovery, maintenance, *doors])

    @property
    def rest_app(self) -> FastAPI:
        """The ASGI application of the REST door."""
        return self._rest_app

    @property
    def rpc_address(self) -> str:
        """`host:port` of the gRPC door, valid after `start`."""
        return self._rpc.address

    @property
    def rest_address(self) -> str:
        """`host:port` of the REST door, valid after `start`; empty without a port of its own."""
        return self._http.address if self._http else ""

    async def start(self) -> None:
        """Wait for Redis, bring it into agreement with the disk, take up interrupted ingests, open the doors.

        Raises:
            RegistryUnavailable: Redis does not answer in time.
            InvalidInput: the base model cannot be read, or `unsupported_store_format`.
        """
        await self._wait_for_redis()
        await asyncio.to_thread(self._shared.base.modules)
        preparing = RedisLock(self._shared.redis, key=_STORE_LOCK, lease_seconds=_STORE_LEASE_SECONDS)
        async with held(preparing, wait_seconds=_STORE_LEASE_SECONDS):
            await asyncio.to_thread(self._shared.data.prepare)
        await self._shared.catalog.reconcile()
        await self._group.start()
        self._is_ready = True
        await self._rpc.set_serving(is_serving=True)

    async def stop(self, *, grace_seconds: float) -> None:
        """Close the doors, let calls in flight finish for at most `grace_seconds`."""
        self._is_ready = False
        self._servicer.close()
        await self._group.stop(grace_seconds=grace_seconds)
        await self._shared.redis.aclose()
        await asyncio.to_thread(self._shared.celery.close)

    async def _wait_for_redis(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._redis_wait_seconds
        while True:
            try:
                with translated_redis_errors():
                    await self._shared.redis.ping()  # pyright: ignore[reportGeneralTypeIssues]  (untyped union)
                return
            except RegistryUnavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_SECONDS_BETWEEN_REDIS_ATTEMPTS)


class IngestProcess:
    """The process that does the ingests, one after the other: Celery around one event loop.

    The loop lives as long as the process, so that the Redis connections do, too.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        shared = _build_shared(settings)
        # Both are loaded before the first job is taken: no claim runs out while a model is imported.
        shared.base.modules()
        encoder = SentenceTransformerEncoder(settings.encoder, instruction=settings.encoder_instruction)
        shared.data.wait_until_prepared(timeout_seconds=settings.redis_wait_seconds)
        self._ingestion = Ingestion(
            staging=shared.staging,
            jobs=shared.jobs,
            catalog=shared.catalog,
            lifecycle=shared.lifecycle,
            profiling=AdapterProfiling(
                lifecycle=shared.lifecycle,
                artifacts=shared.data.artifacts,
                profiles=shared.data.profiles,
                encoder=encoder,
                sources=shared.profile_texts,
            ),
            orders=shared.orders,
            artifacts=shared.data.artifacts,
            profiles=shared.data.profiles,
            validator=shared.validator,
            base=shared.base,
            encoder=encoder,
            fetcher=Fetcher(sources=shared.sources, jobs=shared.jobs, assemble=assemble),
            pool_check=PoolCheck(source=RegisteredPool(shared.data.registrations), artifacts=shared.data.artifacts),
            lease_seconds=settings.job_lease_seconds,
        )
        self._reprofiling = Reprofiling(
            publisher=shared.publisher,
            registrations=shared.data.registrations,
            profiles=shared.data.profiles,
            encoder=encoder,
            max_versions=settings.reprofile_batch,
        )
        self._celery = shared.celery
        self._log_level = settings.log_level
        self._runner = asyncio.Runner()
        register_ingest_task(self._celery, self)
        register_reprofile_task(self._celery, self, pause_seconds=settings.reprofile_pause_seconds)

    def run(self, job_id: str) -> None:
        """See `Ingestion.run`."""
        self._runner.run(self._ingestion.run(job_id))

    def give_up(self, job_id: str, error: HiloraError) -> None:
        """See `Ingestion.give_up`."""
        self._runner.run(self._ingestion.give_up(job_id, error))

    def reprofile(self) -> bool:
        """See `Reprofiling.run`."""
        return self._runner.run(self._reprofiling.run())

    def serve(self) -> None:
        """Take jobs until SIGTERM or SIGINT; embed the pool again if the encoder was changed."""
        with self._runner:
            if self._runner.run(self._reprofiling.is_due()):
                start_reprofiling(self._celery)
            run_ingest_process(self._celery, log_level=self._log_level)


def build_registry(settings: RegistrySettings) -> RegistryService:
    """The registry service; nothing is opened or connected before its `start`."""
    return RegistryService(settings)


def build_ingest_worker(settings: RegistrySettings) -> IngestProcess:
    """The ingest process, with base model and encoder loaded.

    Raises:
        InvalidInput: the base model or the encoder cannot be loaded.
    """
    return IngestProcess(settings)


def _build_shared(settings: RegistrySettings) -> _Shared:
    data_dir = settings.data_dir
    redis_url = settings.redis_url.get_secret_value()
    redis = open_redis(redis_url)
    celery = build_celery_app(broker_url_of(redis_url))
    queue = CeleryIngestQueue(app=celery, task_name=INGEST_TASK, queue_key=INGEST_QUEUE_KEY, redis=redis)
    staging = DiskStagingArea(data_dir / "incoming")
    jobs = RedisJobStore(redis, lease_seconds=settings.job_lease_seconds, max_finished_jobs=settings.max_finished_jobs)
    data = DataFolder(data_dir)
    profile_texts = build_profile_texts(
        settings.profile_sources,
        hub_cache=data_dir / "hub" if settings.allow_hub else None,
        hub_token=settings.hub_token.get_secret_value() if settings.hub_token else None,
        worker_address=settings.worker_address,
    )
    orders = ProfileOrders(
        staging=staging,
        jobs=jobs,
        queue=queue,
        registrations=data.registrations,
        sources=[texts.source for texts in profile_texts],
    )
    index = RedisCatalogIndex(redis, max_kept_changes=settings.max_kept_changes)
    publisher = CatalogPublisher(
        index=index, registrations=data.registrations, artifacts=data.artifacts, profiles=data.profiles
    )
    base = TransformersBaseModel(
        settings.base_model,
        name=settings.base_model_name or _public_name(settings.base_model),
        cache_folder=data_dir / "cache",
    )
    unpack_limited = partial(
        unpack,
        limits=ArchiveLimits(
            max_members=settings.max_archive_members,
            max_unpacked_bytes=settings.max_unpacked_bytes,
            max_ratio=settings.max_archive_ratio,
        ),
    )
    return _Shared(
        redis=redis,
        celery=celery,
        staging=staging,
        queue=queue,
        data=data,
        jobs=jobs,
        publisher=publisher,
        catalog=Catalog(
            index=index,
            registrations=data.registrations,
            artifacts=data.artifacts,
            profiles=data.profiles,
            publisher=publisher,
            holds_new_versions=settings.admission == "quarantine-first",
            default_access=AdapterAccess(trust_tier=settings.default_trust_tier),
        ),
        lifecycle=AdapterLifecycle(
            publisher=publisher,
            registrations=data.registrations,
            profiles=data.profiles,
            taken_names=_taken_names(base),
            orders=orders,
        ),
        profile_texts=profile_texts,
        orders=orders,
        base=base,
        validator=AdapterValidator(
            reader=HardenedSafetensorsReader(),
            base=base,
            limits=ValidationLimits(max_lora_rank=settings.max_lora_rank, max_eager_bytes=settings.max_eager_bytes),
        ),
        sources=_build_sources(settings, unpack=unpack_limited),
        unpack=unpack_limited,
    )


def _taken_names(base: TransformersBaseModel) -> frozenset[str]:
    """What clients call the base: a router without a name of its own for it shows the last part of a hub id."""
    return frozenset({base.name, base.name.rpartition("/")[2]})


def _build_sources(settings: RegistrySettings, *, unpack: ArchiveUnpacker) -> dict[SourceKind, AdapterSource]:
    limits = FetchLimits(max_bytes=settings.max_upload_bytes, max_seconds=settings.max_fetch_seconds)
    return {
        SourceKind.PATH: LocalFolderSource(allowed_folders=settings.allowed_local_dirs, limits=limits, unpack=unpack),
        SourceKind.HUB: HubSource(
            is_allowed=settings.allow_hub,
            limits=limits,
            cache=settings.data_dir / "hub",
            token=settings.hub_token.get_secret_value() if settings.hub_token else None,
        ),
        SourceKind.OBJECT: ObjectStoreSource(
            allowed_prefixes=settings.allowed_object_stores, limits=limits, unpack=unpack
        ),
        SourceKind.URL: UrlSource(allowed_hosts=settings.allowed_url_hosts, limits=limits, unpack=unpack),
    }


def _public_name(base_model: str) -> str:
    """A folder's name, or a hub id as it is."""
    folder = Path(base_model)
    return folder.resolve().name if folder.is_dir() else base_model
