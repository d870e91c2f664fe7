"""Builds the whole system in one process."""

from __future__ import annotations

import asyncio
import errno
import gc
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from hilora.errors import Conflict, Unavailable
from services.common.auth import is_loopback, refuse_open_door
from services.common.http_server import HttpServer
from services.common.lifecycle import Component
from services.common.log import get_logger
from services.registry.bootstrap import RegistryService, build_registry
from services.registry.settings import RegistrySettings
from services.router.bootstrap import Router, build_router, callers_of
from services.router.catalog import CatalogView
from services.router.settings import RouterSettings
from services.standalone.data_folder import DataFolder
from services.standalone.front_door import FrontDoor
from services.standalone.port_reservation import PortReservation
from services.standalone.redis_process import build_redis_process, redis_url_of
from services.standalone.settings import StandaloneSettings, child_environment
from services.standalone.supervisor import SupervisedProcess
from services.worker.bootstrap import build_worker
from services.worker.settings import WorkerSettings

_log = get_logger(__name__)

_REGISTRY_PREFIX = "HILORA_REGISTRY_"
_READY_SECONDS = 120.0
_READINESS_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0
"""What every part has to let go, when the time for draining is used up."""


class Standalone:
    """Registry, router, worker, Redis and the ingest process as one component.

    Args:
        settings: what the operator chose.

    Raises:
        ValueError: the host is not a loopback address and there is no admin key, or anybody may ask for answers.
        InvalidInput: `invalid_key_file`.
    """

    def __init__(self, settings: StandaloneSettings) -> None:
        refuse_open_door(
            host=settings.host,
            has_keys=settings.has_admin_keys,
            is_anonymous_allowed=True,
            setting="HILORA_STANDALONE_ADMIN_API_KEY",
        )
        self._settings = settings
        # What the router would refuse after a minute of starting is refused now.
        callers_of(self._router_settings("registry", "worker"))
        self._base_model = _absolute_if_folder(settings.base_model)
        self._folder = DataFolder(settings.data_dir)
        self._front_door = FrontDoor()
        self._http_server = HttpServer(app=self._front_door, host=settings.host, port=settings.port)
        self._redis: SupervisedProcess | None = None
        self._ingest: SupervisedProcess | None = None
        self._services: list[Component] = []
        self._registry: RegistryService | None = None
        self._router: Router | None = None
        self._rpc_address = ""

    @property
    def rpc_address(self) -> str:
        """`host:port` of the public gRPC server, valid after `start`."""
        return self._rpc_address

    @property
    def adapter_names(self) -> frozenset[str]:
        """Adapters that requests can name by now; none before `start`."""
        view = self._catalog_view
        return frozenset() if view is None else frozenset(view.adapters)

    @property
    def has_fitted(self) -> bool:
        """Whether the choice is fitted to every adapter that requests can name; not before `start`."""
        view = self._catalog_view
        return view is not None and view.is_fitted

    @property
    def _catalog_view(self) -> CatalogView | None:
        return None if self._router is None else self._router.catalog_view

    @property
    def address(self) -> str:
        """`host:port` of the public HTTP server, valid after `start`."""
        return self._http_server.address

    async def start(self) -> None:
        """Return when a request would be answered.

        Raises:
            Conflict: `data_dir_in_use` or `port_in_use`.
            InvalidInput: the base model or the encoder cannot be loaded, or there is no Redis server.
            OSError: the address cannot be bound, or the data folder cannot be written.
            Unavailable: a part did not start.
        """
        began = time.monotonic()
        self._folder.acquire()
        try:
            await self._start_parts()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise
        # A million objects of torch and transformers will never be garbage: without them a full collection no longer
        # holds up the event loop, and the process ends at once instead of taking them apart for seconds.
        gc.freeze()
        _log.info("standalone_ready", address=self.address, seconds=round(time.monotonic() - began, 1))

    async def stop(self, *, grace_seconds: float) -> None:
        """Let requests in flight finish for at most `grace_seconds`, then stop every part, the last started first."""
        deadline = time.monotonic() + grace_seconds

        async def stop(component: Component) -> None:
            began = time.monotonic()
            remaining = max(deadline - began, min(grace_seconds, _STOP_SECONDS))
            try:
                await component.stop(grace_seconds=remaining)
            except Exception:  # one part that cannot stop must not keep the others running
                _log.exception("stop_failed", component=type(component).__name__)
            _log.info("stopped", component=type(component).__name__, seconds=round(time.monotonic() - began, 2))

        # The ingest in progress finishes while requests do: none of them needs it.
        ingest = asyncio.create_task(stop(self._ingest)) if self._ingest else None
        if self._registry is not None:
            self._registry.end_streams()
            self._registry = None
        await stop(self._http_server)
        while self._services:
            await stop(self._services.pop())
        if ingest is not None:
            await ingest
            self._ingest = None
        if self._redis is not None:
            await stop(self._redis)
            self._redis = None
        self._folder.release()

    async def _start_parts(self) -> None:
        # First, because a port that is taken should be said at once; the door answers 503 until it is attached.
        await self._open_door()
        redis = build_redis_process(self._folder)
        await redis.start()
        self._redis = redis
        # The ingest process asks the worker for self-portraits, and has to know where before there is one.
        worker_port = PortReservation()
        registry_settings = self._registry_settings(worker_address=worker_port.address)
        # Its imports take longer than all else: it goes before the rest, and runs on a core of its own.
        ingest = self._ingest_process(registry_settings)
        await ingest.start()
        self._ingest = ingest
        registry = build_registry(registry_settings)
        await self._start(registry)
        self._registry = registry
        worker = build_worker(self._worker_settings(registry.rpc_address, rpc_port=worker_port.port))
        await self._start(worker)
        worker_port.release()
        router = build_router(
            self._router_settings(registry.rpc_address, worker.rpc_address),
            opens_http=False,
        )
        await self._start(router)
        self._router = router
        self._rpc_address = router.rpc_address
        await _wait_until_ready(router)
        self._front_door.attach(
            registry_app=registry.rest_app,
            router_app=router.rest_app,
            figures=[router.render_metrics, registry.render_metrics, worker.render_metrics],
        )

    async def _open_door(self) -> None:
        try:
            await self._http_server.start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Conflict(
                f"Another program listens on {self.address}.",
                code="port_in_use",
                remedy="Stop it, or give another --port.",
                place="port",
            ) from error

    async def _start(self, service: Component) -> None:
        await service.start()
        self._services.append(service)

    def _ingest_process(self, registry_settings: RegistrySettings) -> SupervisedProcess:
        return SupervisedProcess(
            name="ingest",
            command=[sys.executable, "-m", "services.registry.ingest_worker"],
            environment=child_environment(registry_settings.to_environment(), prefix=_REGISTRY_PREFIX),
            run_folder=self._folder.run,
            log_folder=self._folder.logs,
        )

    def _registry_settings(self, *, worker_address: str) -> RegistrySettings:
        settings = self._settings
        return RegistrySettings(
            rpc_port=0,
            has_own_rest_port=False,
            exit_with_parent=True,
            redis_url=SecretStr(redis_url_of(self._folder)),
            data_dir=self._folder.registry,
            base_model=self._base_model,
            base_model_name=settings.base_model_name or "",
            admin_api_key=settings.admin_api_key,
            admin_keys_file=settings.admin_keys_file,
            # One user, one machine: whoever starts a pool to try it is its operator. Any key ends this.
            allow_anonymous_admin=is_loopback(settings.host) and not settings.has_admin_keys,
            encoder=settings.encoder,
            encoder_instruction=settings.encoder_instruction,
            worker_address=worker_address,
            log_level=settings.log_level,
        )

    def _worker_settings(self, registry_address: str, *, rpc_port: int) -> WorkerSettings:
        return WorkerSettings(
            rpc_port=rpc_port,
            registry_address=registry_address,
            base_model=self._base_model,
            base_model_name=self._settings.base_model_name,
            device=self._settings.device,
        )

    def _router_settings(self, registry_address: str, worker_address: str) -> RouterSettings:
        return RouterSettings(
            rpc_host=self._settings.host,
            rpc_port=self._settings.rpc_port,
            registry_address=registry_address,
            worker_addresses=(worker_address,),
            base_model_name=self._settings.base_model_name,
            encoder=self._settings.encoder,
            encoder_instruction=self._settings.encoder_instruction,
            **self._access(),
        )

    def _access(self) -> dict[str, Any]:
        """What is said here of who may ask; the rest stays with the router's own variables."""
        said: dict[str, Any] = {}
        if self._settings.api_keys_file is not None:
            said["api_keys_file"] = self._settings.api_keys_file
        if self._settings.allow_anonymous:
            said["allow_anonymous"] = True
        return said


def build_standalone(settings: StandaloneSettings) -> Standalone:
    """A system that has not started."""
    return Standalone(settings)


def _absolute_if_folder(base_model: str) -> str:
    """A folder by its absolute path, so that child processes find it from anywhere; a hub id as it is."""
    folder = Path(base_model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else base_model


async def _wait_until_ready(router: Router) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not (readiness := router.readiness()).can_generate:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"After {_READY_SECONDS:g} s there is still no {', '.join(readiness.missing)}.", code="not_ready"
            )
        await asyncio.sleep(_READINESS_POLL_SECONDS)
