"""Wires the registry service from its settings; `ingest_process` does so for the process that does the ingests."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial

from starlette.types import ASGIApp

from hilora.errors import RegistryUnavailable
from services.common.auth import AccessKey, FixedKeys, KeyFile, KeyRing, KeySource
from services.common.http_server import HttpServer
from services.common.lifecycle import Component, ComponentGroup
from services.common.rpc_server import RpcServer
from services.registry.cancellation import JobCancellation
from services.registry.collection import CollectionPolicy, Collector
from services.registry.confusability_audit import ConfusabilityAudit
from services.registry.entrypoints.confusability_rpc import AUDIT_SERVICE_NAME, AuditServicer
from services.registry.entrypoints.dependencies import RestDependencies
from services.registry.entrypoints.event_stream import EventStreams
from services.registry.entrypoints.lifecycle_routes import LifecycleDependencies, lifecycle_routes
from services.registry.entrypoints.lifecycle_rpc import LIFECYCLE_SERVICE_NAME, LifecycleServicer
from services.registry.entrypoints.metrics import RegistryMetrics
from services.registry.entrypoints.rest import create_rest_app
from services.registry.entrypoints.rpc import SERVICE_NAME, RegistryServicer, register_with
from services.registry.entrypoints.rpc_access import RpcAccess
from services.registry.infra.assembly import assemble
from services.registry.infra.redis_connection import KEY_PREFIX, RedisLock, held, translated_redis_errors
from services.registry.infra.redis_idempotency import RedisIdempotencyStore
from services.registry.infra.stored_components import StoredComponents
from services.registry.intake import Intake
from services.registry.maintenance import Maintenance
from services.registry.process_setup import SharedParts, build_shared_parts
from services.registry.recovery import JobRecovery
from services.registry.settings import RegistrySettings

_SECONDS_BETWEEN_REDIS_ATTEMPTS = 0.1
_STORE_LOCK = f"{KEY_PREFIX}store:lock"
_STORE_LEASE_SECONDS = 15.0
_STORE_WAIT_SECONDS = 600.0
"""Migrating a large store reads and writes each manifest once; the other replicas wait for the one that does."""


class RegistryService:
    """The registry without its ingest process; a component.

    `rest_app` exists from the beginning, so that another server can mount it; it answers 503 on `/readyz` before
    `start` has returned.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        shared = build_shared_parts(settings)
        queue = shared.queue
        intake = Intake(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=queue,
            catalog=shared.catalog,
            validator=shared.validator,
            sources=shared.sources,
            unpack=shared.unpack,
            assemble=assemble,
            taken_names=shared.taken_names,
        )
        collector = _build_collector(shared, settings)
        cancellation = JobCancellation(jobs=shared.jobs, staging=shared.staging)
        keys = _build_keys(settings)
        access = RpcAccess(keys=keys, audit=shared.audit)
        lifecycle_servicer = LifecycleServicer(lifecycle=shared.lifecycle, access=access)
        self._shared = shared
        self._streams = EventStreams()
        self._redis_wait_seconds = settings.redis_wait_seconds
        self._is_ready = False
        self._servicer = RegistryServicer(
            catalog=shared.catalog,
            jobs=shared.jobs,
            intake=intake,
            cancellation=cancellation,
            orders=shared.orders,
            access=access,
            heartbeat_seconds=settings.watch_heartbeat_seconds,
        )
        identity = settings.tls_identity()
        components = StoredComponents(shared.data.artifacts, root=settings.data_dir / "artifacts")
        confusability = ConfusabilityAudit(catalog=shared.catalog, components=components)
        self._rpc = RpcServer(
            host=settings.rpc_host,
            port=settings.rpc_port,
            register=[
                partial(register_with, self._servicer),
                lifecycle_servicer.register,
                AuditServicer(audit=confusability, access=access).register,
            ],
            service_names=[SERVICE_NAME, LIFECYCLE_SERVICE_NAME, AUDIT_SERVICE_NAME],
            identity=identity,
            health_port=settings.health_port,
        )
        self._metrics = RegistryMetrics(
            catalog=shared.catalog,
            jobs=shared.jobs,
            queue=queue,
            stores={"artifacts": shared.data.artifacts.folders, "profiles": shared.data.profiles.folders},
            free_bytes=lambda: shutil.disk_usage(settings.data_dir).free,
        )
        if identity is not None:
            self._metrics.watch_certificate(identity.expires_at)
        self._rest_app = create_rest_app(
            RestDependencies(
                intake=intake,
                catalog=shared.catalog,
                components=components,
                confusability=confusability,
                jobs=shared.jobs,
                cancellation=cancellation,
                idempotency=RedisIdempotencyStore(shared.redis),
                audit=shared.audit,
                metrics=self._metrics,
                streams=self._streams,
                is_ready=lambda: self._is_ready,
                max_upload_bytes=settings.max_upload_bytes,
                heartbeat_seconds=settings.watch_heartbeat_seconds,
                load_wait_seconds=settings.load_wait_seconds,
            ),
            keys=keys,
            more_routes=[
                lifecycle_routes(
                    LifecycleDependencies(
                        lifecycle=shared.lifecycle, intake=intake, collector=collector, orders=shared.orders
                    )
                )
            ],
        )
        recovery = JobRecovery(
            staging=shared.staging,
            jobs=shared.jobs,
            queue=queue,
            registrations=shared.data.registrations,
            artifacts=shared.data.artifacts,
            interval_seconds=settings.recovery_interval_seconds,
        )
        maintenance = Maintenance(
            catalog=shared.catalog,
            collector=collector,
            profiles=shared.data.profiles,
            missing_profiles=shared.missing_profiles,
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
    def rest_app(self) -> ASGIApp:
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

    async def render_metrics(self) -> bytes:
        """What `/metrics` shows."""
        return (await self._metrics.render())[0]

    async def start(self) -> None:
        """Wait for Redis, bring it into agreement with the disk, take up interrupted ingests, open the doors.

        Raises:
            RegistryUnavailable: Redis does not answer in time.
            InvalidInput: the base model cannot be read, or `unsupported_store_format`.
        """
        await self._wait_for_redis()
        await asyncio.to_thread(self._shared.base.modules)
        preparing = RedisLock(self._shared.redis, key=_STORE_LOCK, lease_seconds=_STORE_LEASE_SECONDS)
        async with held(preparing, wait_seconds=_STORE_WAIT_SECONDS):
            await asyncio.to_thread(self._shared.data.prepare)
        await self._shared.catalog.reconcile()
        await self._group.start()
        self._is_ready = True
        await self._rpc.set_serving(is_serving=True)

    def end_streams(self) -> None:
        """End everything that only listens, so that no server waits for it: the first thing to do at a stop."""
        self._streams.close()
        self._servicer.close()

    async def stop(self, *, grace_seconds: float) -> None:
        """Close the doors, let calls in flight finish for at most `grace_seconds`."""
        self._is_ready = False
        self.end_streams()
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


def build_registry(settings: RegistrySettings) -> RegistryService:
    """The registry service; nothing is opened or connected before its `start`."""
    return RegistryService(settings)


def _build_collector(shared: SharedParts, settings: RegistrySettings) -> Collector:
    return Collector(
        publisher=shared.publisher,
        registrations=shared.data.registrations,
        artifacts=shared.data.artifacts.folders,
        profiles=shared.data.profiles.folders,
        policy=CollectionPolicy(keep_versions=settings.keep_versions, grace_seconds=settings.collection_grace_seconds),
    )


def _build_keys(settings: RegistrySettings) -> KeyRing:
    fixed = list(settings.admin_keys)
    if settings.admin_api_key is not None:
        fixed.append(AccessKey.of_secret("admin", settings.admin_api_key))
    sources: list[KeySource] = [FixedKeys(fixed)] if fixed else []
    if settings.admin_keys_file is not None:
        sources.append(KeyFile(settings.admin_keys_file))
    return KeyRing(sources, is_anonymous_allowed=settings.allow_anonymous_admin)
