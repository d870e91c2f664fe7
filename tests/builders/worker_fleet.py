"""A router in front of real worker processes that are killed, told to stop, and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.router.bootstrap import Router, build_router
from services.router.settings import RouterSettings
from tests.builders.ports import free_port
from tests.builders.redis_server import redis_server
from tests.builders.system import TESTBED, is_alive
from tests.builders.worker_spares import WorkerSpares
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually


@dataclass(kw_only=True)
class RealWorker:
    """A worker process with the testbed's base; it has another port after each start, as a new pod has."""

    spares: WorkerSpares
    registry_address: str
    redis_url: str
    address: str = ""
    pid: int = 0

    async def start(self) -> None:
        """Begin to start; the router finds it through Redis."""
        self.address = f"127.0.0.1:{free_port()}"
        environment = {
            "HILORA_WORKER_REGISTRY_ADDRESS": self.registry_address,
            "HILORA_WORKER_BASE_MODEL": str(TESTBED / "base"),
            "HILORA_WORKER_DEVICE": "cpu",
            "HILORA_WORKER_REDIS_URL": self.redis_url,
            "HILORA_WORKER_RPC_PORT": self.address.rpartition(":")[2],
            "HILORA_WORKER_ADVERTISE_ADDRESS": self.address,
        }
        self.pid = await asyncio.to_thread(self.spares.start, environment)

    def kill(self) -> None:
        """End it as the loss of its machine would."""
        os.kill(self.pid, signal.SIGKILL)

    def drain(self) -> None:
        """Tell it to stop, as Kubernetes does."""
        os.kill(self.pid, signal.SIGTERM)

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return is_alive(self.pid)


@dataclass(frozen=True, kw_only=True)
class RealFleet:
    """The router and its workers."""

    router: Router
    workers: list[RealWorker]

    @property
    def url(self) -> str:
        """The router's HTTP door."""
        return f"http://{self.router.rest_address}"

    @property
    def num_live(self) -> int:
        """Workers that the router would send a request to."""
        return self.router._workers.fleet().num_live

    def num_in_flight(self, worker: RealWorker) -> int:
        """Requests of the router that a worker has."""
        statuses = self.router._workers.fleet().workers
        return sum(status.num_in_flight for status in statuses if status.address == worker.address)

    def is_live(self, worker: RealWorker) -> bool:
        """Whether the router would send a worker a request."""
        statuses = self.router._workers.fleet().workers
        return any(status.is_live for status in statuses if status.address == worker.address)


@asynccontextmanager
async def real_fleet(folder: Path, *, num_workers: int) -> AsyncIterator[RealFleet]:
    """A fleet whose workers are all live."""
    async with AsyncExitStack() as stack:
        registry = FakeRegistry()
        await registry.start()
        stack.push_async_callback(registry.stop)
        redis_url = stack.enter_context(redis_server(folder / "redis"))
        spares = stack.enter_context(WorkerSpares(stack.enter_context((folder / "workers.log").open("wb"))))
        workers = [
            RealWorker(spares=spares, registry_address=registry.address, redis_url=redis_url)
            for _ in range(num_workers)
        ]
        for worker in workers:
            await worker.start()
        settings = RouterSettings(
            rpc_port=0,
            rest_port=0,
            registry_address=registry.address,
            worker_addresses=("redis",),
            redis_url=redis_url,
            worker_lookup_seconds=0.5,
            worker_stall_seconds=30.0,
        )
        router = build_router(settings, load_encoder=HashEncoder)
        await router.start()
        stack.push_async_callback(router.stop, grace_seconds=0)
        fleet = RealFleet(router=router, workers=workers)
        await eventually(lambda: fleet.num_live == num_workers, timeout_seconds=60)
        yield fleet
