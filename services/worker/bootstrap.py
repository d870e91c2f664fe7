"""Builds a worker from its settings. Nothing else here knows both sides of a port."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import grpc

from services.common.lifecycle import Component
from services.common.log import get_logger
from services.common.metrics import render_metrics
from services.common.rpc_client import open_channel
from services.common.rpc_server import RpcServer
from services.common.tasks import end_tasks
from services.common.tracer_start import open_tracer
from services.worker.base_setup import engine_config, join_group, load_base
from services.worker.engine.engine import Engine
from services.worker.engine.sampling.grammar import GrammarCompiler
from services.worker.entrypoints.rpc import SERVICE_NAME, WorkerServicer
from services.worker.entrypoints.worker_metrics import MetricsPort, WorkerMetrics
from services.worker.generation import Generation
from services.worker.infra.catalog_follower import CatalogFollower
from services.worker.infra.component_cache import ComponentCache
from services.worker.infra.component_client import ComponentClient
from services.worker.infra.component_files import ComponentFiles
from services.worker.infra.gate_files import GateFiles
from services.worker.infra.merged_components import MergedComponents
from services.worker.lora.pool.pool_stats import FreedBytes
from services.worker.models.loader import LoadedModel, public_name_of
from services.worker.models.prompt_encoder import PromptEncoder
from services.worker.models.tensor_parallel import ParallelGroup
from services.worker.models.token_vocabulary import TokenVocabulary
from services.worker.preparation import PlanPreparer
from services.worker.settings import ProcessPlace, WorkerSettings

_log = get_logger(__name__)

_STREAM_GRACE_SECONDS = 2.0
"""After the drain, for last events to reach their clients."""


class WorkerService:
    """A worker as one component: gRPC door, engine, catalogue replica.

    The port answers at once; health says SERVING when the model is loaded and a first catalogue snapshot has arrived.
    """

    def __init__(self, settings: WorkerSettings, place: ProcessPlace) -> None:
        self._settings = settings
        self._place = place
        base_model = settings.base_model_name or public_name_of(settings.base_model)
        self._metrics = WorkerMetrics(as_vllm=settings.metrics_as_vllm)
        self._metrics_port = (
            None
            if settings.metrics_port is None
            else MetricsPort(self._metrics.registry, host=settings.rpc_host, port=settings.metrics_port)
        )
        self._tracer = open_tracer(service="hilora-worker", endpoint=settings.otlp_endpoint, sample_ratio=1.0)
        self._worker_id = f"worker-{secrets.token_hex(4)}"
        self._servicer = WorkerServicer(worker_id=self._worker_id, base_model=base_model, observe=self._metrics.observe)
        identity = settings.tls_identity()
        if identity is not None:
            self._metrics.watch_certificate(identity.expires_at)
        self._server = RpcServer(
            host=settings.rpc_host,
            port=settings.rpc_port,
            register=[self._servicer.register],
            service_names=[SERVICE_NAME],
            identity=identity,
            health_port=settings.health_port,
            tracer=self._tracer,
        )
        self._identity = identity
        self._channel: grpc.aio.Channel | None = None
        self._follower: CatalogFollower | None = None
        self._engine: Engine | None = None
        self._group: ParallelGroup | None = None
        self._client: ComponentClient | None = None
        self._cache: ComponentCache | None = None
        self._merged: MergedComponents | None = None
        self._announcement: asyncio.Task[None] | None = None
        self._registration: Component | None = None
        self._is_announced = False
        self._is_healthy = True

    @property
    def rpc_address(self) -> str:
        """`host:port` of the gRPC server, valid after `start`."""
        return self._server.address

    @property
    def metrics_address(self) -> str | None:
        """`host:port` of `/metrics`, valid after `start`; None if there is none."""
        return None if self._metrics_port is None else self._metrics_port.address

    async def render_metrics(self) -> bytes:
        """What `/metrics` shows."""
        return render_metrics(self._metrics.registry)[0]

    async def start(self) -> None:
        """Open the port, load the model, start the engine; returns when requests for the base would be answered.

        The registry may be away: health stays NOT_SERVING until it is found.

        Raises:
            InvalidInput: the base model cannot be loaded.
            RuntimeError: the port is taken.
            ValueError: the limits contradict one another.
        """
        settings = self._settings
        try:
            await self._server.start()
            if self._metrics_port is not None:
                await self._metrics_port.start()
            self._channel = open_channel(settings.registry_address, identity=self._identity)
            files = _disk_tier(settings)
            peer = f"registry at {settings.registry_address}"
            self._follower = CatalogFollower(
                channel=self._channel,
                peer=peer,
                on_departure=self._forget,
                on_arrival=self._welcome,
                on_superseded=self._unpin,
            )
            self._client = ComponentClient(
                channel=self._channel,
                loop=asyncio.get_running_loop(),
                peer=peer,
                checksum_of=self._follower.checksum_of,
                timeout_seconds=settings.component_timeout_seconds,
                files=files,
            )
            await self._follower.start()
            loaded, self._cache, self._merged, self._engine = await asyncio.to_thread(
                self._load, self._client, self._follower, self._health_callback(asyncio.get_running_loop())
            )
            self._group = loaded.group
            self._engine.start()
            for adapter_name in settings.pinned_adapters:
                if (adapter_id := self._follower.id_of(adapter_name)) is not None:
                    self._engine.pin(adapter_id, settings.pinned_basis)
        except BaseException:
            await self.stop(grace_seconds=0)
            raise
        follower = self._follower
        self._metrics.attach(self._engine.stats, catalog_generation=lambda: follower.catalog_generation)
        vocabulary = TokenVocabulary(loaded.tokenizer, loaded.vocab_size)
        self._servicer.attach(
            generation=Generation(
                engine=self._engine,
                encoder=PromptEncoder(loaded.tokenizer, model_name=loaded.name),
                vocabulary=vocabulary,
                compiler=GrammarCompiler(vocabulary, eos_token_ids=loaded.eos_token_ids),
                catalog=self._follower,
                preparer=PlanPreparer(engine=self._engine, merger=self._merged),
            ),
            stats=self._engine.stats,
            host_tier=self._cache.stats,
            disk_tier=None if files is None else files.stats,
            catalog=self._follower,
        )
        self._announcement = asyncio.create_task(self._announce(self._follower), name="worker-announcement")

    async def stop(self, *, grace_seconds: float) -> None:
        """Refuse new requests, let those in flight finish for at most `grace_seconds`, then abort them."""
        if self._announcement is not None:
            await end_tasks(self._announcement)
            self._announcement = None
        self._is_announced = False
        if self._registration is not None:
            # Before the drain: routers send nothing new, and what is in flight finishes.
            await self._registration.stop(grace_seconds=0)
            self._registration = None
        if self._engine is not None:
            await self._server.set_serving(is_serving=False)
            # The engine's last events travel through this loop, so it must not be blocked here.
            await asyncio.to_thread(self._engine.stop, drain_seconds=grace_seconds)
            self._engine = None
        if self._group is not None:
            await asyncio.to_thread(self._group.release)
            self._group.leave()
            self._group = None
        await self._server.stop(grace_seconds=min(grace_seconds, _STREAM_GRACE_SECONDS))
        if self._metrics_port is not None:
            await self._metrics_port.stop(grace_seconds=0)
        if self._tracer is not None:
            await self._tracer.stop(grace_seconds=_STREAM_GRACE_SECONDS)
        if self._follower is not None:
            await self._follower.stop(grace_seconds=0)
            self._follower = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _load(
        self, client: ComponentClient, follower: CatalogFollower, on_health: Callable[[bool], None]
    ) -> tuple[LoadedModel, ComponentCache, MergedComponents, Engine]:
        settings = self._settings
        group = join_group(settings, self._place)
        loaded = load_base(settings, group)
        config = engine_config(settings, loaded)
        cache = ComponentCache(
            client, capacity_bytes=settings.host_cache_bytes, dtype=loaded.dtype, is_current=follower.has_adapter
        )
        merged = MergedComponents(cache, capacity_bytes=settings.merged_cache_bytes, dtype=loaded.dtype)
        gate_source = None if settings.gates_dir is None else GateFiles(settings.gates_dir)
        engine = Engine(loaded=loaded, source=merged, config=config, gate_source=gate_source, on_health=on_health)
        _log.info(
            "model_loaded",
            base_model=loaded.name,
            device=str(loaded.device),
            dtype=str(loaded.dtype),
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            num_processes=1 if group is None else group.size,
        )
        return loaded, cache, merged, engine

    async def _announce(self, follower: CatalogFollower) -> None:
        await follower.wait_for_snapshot()
        self._is_announced = True
        await self._server.set_serving(is_serving=self._is_healthy)
        self._registration = _registration(self._settings, self._worker_id)
        if self._registration is not None:
            await self._registration.start()
        _log.info("worker_serving", address=self.rpc_address, catalog_generation=follower.catalog_generation)

    def _health_callback(self, loop: asyncio.AbstractEventLoop) -> Callable[[bool], None]:
        """What the engine's threads may call."""

        async def change(*, is_healthy: bool) -> None:
            self._is_healthy = is_healthy
            _log.warning("engine_health_changed", is_healthy=is_healthy)
            await self._server.set_alive(is_alive=is_healthy)
            if self._is_announced:
                await self._server.set_serving(is_serving=is_healthy)

        def on_health(is_healthy: bool) -> None:  # noqa: FBT001  (a callback's one argument)
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(change(is_healthy=is_healthy), loop)

        return on_health

    def _welcome(self, adapter_name: str, adapter_id: str) -> None:
        """An adapter version is in the catalogue, for the first time or again."""
        if self._engine is None:
            return
        self._engine.readmit(adapter_id)
        if adapter_name in self._settings.pinned_adapters:
            self._engine.pin(adapter_id, self._settings.pinned_basis)

    def _unpin(self, adapter_id: str) -> None:
        """A version's name means another one: its room is free for others, but requests may still name it."""
        if self._engine is not None:
            self._engine.retire(adapter_id)
            self._engine.readmit(adapter_id)

    def _forget(self, adapter_id: str) -> None:
        """An adapter version left the catalogue: free what it holds, on the device once its last request has ended."""
        device = FreedBytes(0, 0) if self._engine is None else self._engine.retire(adapter_id)
        for merged_id in [] if self._merged is None else self._merged.forget(adapter_id):
            assert self._engine is not None, "what merges feeds an engine"
            self._engine.retire(merged_id)
        _log.info(
            "adapter_departed",
            adapter_id=adapter_id,
            device_bytes=device.now,
            device_bytes_later=device.later,
            host_bytes=0 if self._cache is None else self._cache.forget(adapter_id),
            disk_bytes=0 if self._client is None else self._client.forget(adapter_id),
        )


def _registration(settings: WorkerSettings, worker_id: str) -> Component | None:
    """None where nobody asked for it: redis need not be installed then."""
    if settings.redis_url is None or settings.advertise_address is None:
        return None
    from services.worker.infra.registration import RedisRegistration

    return RedisRegistration(
        settings.redis_url.get_secret_value(), worker_id=worker_id, address=settings.advertise_address
    )


def _disk_tier(settings: WorkerSettings) -> ComponentFiles | None:
    if settings.disk_cache_dir is None:
        return None
    return ComponentFiles(settings.disk_cache_dir, capacity_bytes=settings.disk_cache_bytes)


def build_worker(settings: WorkerSettings, place: ProcessPlace | None = None) -> WorkerService:
    """A worker that is ready to be started.

    Args:
        settings: what an operator has set.
        place: the process's place among those that share the model, which has to be the leader's; None: it is alone.
    """
    return WorkerService(settings, place or ProcessPlace.alone())
