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

from hilora.errors import HiloraError, RegistryUnavailable
from services.common.http_server import HttpServer
from services.common.lifecycle import Component, ComponentGroup
from services.common.rpc_server import RpcServer
from services.common.sequence_encoder import SentenceTransformerEncoder
from services.registry.audit import ConfusabilityAudit
from services.registry.catalog import Catalog
from services.registry.entrypoints.audit_rpc import AUDIT_SERVICE_NAME, AuditServicer
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.rest import RestDependencies, create_rest_app
from services.registry.entrypoints.rpc import SERVICE_NAME, RegistryServicer, register_with
from services.registry.entrypoints.tasks import (
    INGEST_QUEUE_KEY,
    INGEST_TASK,
    build_celery_app,
    register_ingest_task,
    run_ingest_process,
)
from services.registry.infra.artifact_store import DiskArtifactStore
from services.registry.infra.base_model import TransformersBaseModel
from services.registry.infra.celery_queue import CeleryIngestQueue
from services.registry.infra.hub_source import HubSource
from services.registry.infra.local_source import LocalFolderSource
from services.registry.infra.redis_catalog import RedisCatalogIndex
from services.registry.infra.redis_connection import broker_url_of, open_redis, translated_redis_errors
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.infra.registration_store import DiskRegistrationStore
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.infra.staging import DiskStagingArea
from services.registry.infra.stored_components import StoredComponents
from services.registry.infra.upload_source import ArchiveLimits, unpack
from services.registry.ingestion import Ingestion
from services.registry.intake import Intake
from services.registry.job import SourceKind
from services.registry.ports import AdapterSource
from services.registry.recovery import JobRecovery
from services.registry.settings import RegistrySettings
from services.registry.validation import AdapterValidator, ValidationLimits

_SECONDS_BETWEEN_REDIS_ATTEMPTS = 0.1


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What service and ingest process have in common."""

    redis: Redis
    celery: Celery
    staging: DiskStagingArea
    registrations: DiskRegistrationStore
    artifacts: DiskArtifactStore
    jobs: RedisJobStore
    catalog: Catalog
    base: TransformersBaseModel
    validator: AdapterValidator
    sources: Mapping[SourceKind, AdapterSource]


class RegistryService:
    """The registry without its ingest process; a component.

    `rest_app` exists from the beginning, so that another server can mount it; it answers 503 on `/readyz` before
    `start` has returned.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        shared = _build_shared(settings)
        queue = CeleryIngestQueue(
            app=shared.celery, task_name=INGEST_TASK, queue_key=INGEST_QUEUE_KEY, redis=shared.redis
        )
        limits = ArchiveLimits(
            max_members=settings.max_archive_members,
            max_unpacked_bytes=settings.max_unpacked_bytes,
            max_ratio=settings.max_archive_ratio,
        )
        intake = Intake(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=queue,
            catalog=shared.catalog,
            validator=shared.validator,
            sources=shared.sources,
            unpack=partial(unpack, limits=limits),
            # A router without a name of its own for the base shows the last part of a hub id.
            taken_names=frozenset({shared.base.name, shared.base.name.rpartition("/")[2]}),
        )
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
        components = StoredComponents(shared.artifacts, root=settings.data_dir / "artifacts")
        audit = ConfusabilityAudit(catalog=shared.catalog, components=components)
        self._rpc = RpcServer(
            host=settings.rpc_host,
            port=settings.rpc_port,
            register=[partial(register_with, self._servicer), AuditServicer(audit).register],
            service_names=[SERVICE_NAME, AUDIT_SERVICE_NAME],
        )
        self._rest_app = create_rest_app(
            RestDependencies(
                intake=intake,
                catalog=shared.catalog,
                jobs=shared.jobs,
                metrics=RegistryMetrics(catalog=shared.catalog, jobs=shared.jobs),
                is_ready=lambda: self._is_ready,
                max_upload_bytes=settings.max_upload_bytes,
                audit=audit,
                components=components,
            ),
            admin_api_key=settings.admin_api_key,
        )
        recovery = JobRecovery(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=queue,
            registrations=shared.registrations,
            artifacts=shared.artifacts,
            interval_seconds=settings.recovery_interval_seconds,
        )
        self._http = (
            HttpServer(app=self._rest_app, host=settings.rest_host, port=settings.rest_port)
            if settings.has_own_rest_port
            else None
        )
        doors: list[Component] = [self._rpc, self._http] if self._http else [self._rpc]
        self._group = ComponentGroup([recovery, *doors])

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
            InvalidInput: the base model cannot be read.
        """
        await self._wait_for_redis()
        await asyncio.to_thread(self._shared.base.modules)
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
        self._ingestion = Ingestion(
            staging=shared.staging,
            jobs=shared.jobs,
            catalog=shared.catalog,
            artifacts=shared.artifacts,
            validator=shared.validator,
            base=shared.base,
            encoder=SentenceTransformerEncoder(settings.encoder, instruction=settings.encoder_instruction),
            sources=shared.sources,
            lease_seconds=settings.job_lease_seconds,
        )
        self._celery = shared.celery
        self._log_level = settings.log_level
        self._runner = asyncio.Runner()
        register_ingest_task(self._celery, self)

    def run(self, job_id: str) -> None:
        """See `Ingestion.run`."""
        self._runner.run(self._ingestion.run(job_id))

    def give_up(self, job_id: str, error: HiloraError) -> None:
        """See `Ingestion.give_up`."""
        self._runner.run(self._ingestion.give_up(job_id, error))

    def serve(self) -> None:
        """Take jobs until SIGTERM or SIGINT."""
        with self._runner:
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
    registrations = DiskRegistrationStore(data_dir / "adapters")
    artifacts = DiskArtifactStore(data_dir / "artifacts")
    base = TransformersBaseModel(
        settings.base_model,
        name=settings.base_model_name or _public_name(settings.base_model),
        cache_folder=data_dir / "cache",
    )
    return _Shared(
        redis=redis,
        celery=build_celery_app(broker_url_of(redis_url)),
        staging=DiskStagingArea(data_dir / "incoming"),
        registrations=registrations,
        artifacts=artifacts,
        jobs=RedisJobStore(
            redis, lease_seconds=settings.job_lease_seconds, max_finished_jobs=settings.max_finished_jobs
        ),
        catalog=Catalog(
            index=RedisCatalogIndex(redis, max_kept_changes=settings.max_kept_changes),
            registrations=registrations,
            artifacts=artifacts,
        ),
        base=base,
        validator=AdapterValidator(
            reader=HardenedSafetensorsReader(),
            base=base,
            limits=ValidationLimits(max_lora_rank=settings.max_lora_rank, max_eager_bytes=settings.max_eager_bytes),
        ),
        sources={
            SourceKind.PATH: LocalFolderSource(
                allowed_folders=settings.allowed_local_dirs, max_bytes=settings.max_upload_bytes
            ),
            SourceKind.HUB: HubSource(is_allowed=settings.allow_hub, max_bytes=settings.max_upload_bytes),
        },
    )


def _public_name(base_model: str) -> str:
    """A folder's name, or a hub id as it is."""
    folder = Path(base_model)
    return folder.resolve().name if folder.is_dir() else base_model
