"""The real router on free ports, between a fake registry and fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.router.bootstrap import Router, build_router
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.worker_service import FakeWorker

TASK_WORDS = {
    "capitals": "country capital city nation",
    "sums": "add numbers plus total",
    "poems": "rhyme verse poem stanza",
}


def task_texts(task: str, *, num_texts: int = 8) -> list[str]:
    """Sample texts of a task: its words, each time with one of its own."""
    return [f"{TASK_WORDS[task]} {task}-{number}" for number in range(num_texts)]


@dataclass(frozen=True, kw_only=True)
class RouterStack:
    router: Router
    registry: FakeRegistry
    workers: Sequence[FakeWorker]
    encoder: HashEncoder

    @property
    def url(self) -> str:
        return f"http://{self.router.rest_address}"

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]

    def add(self, task: str, *, revision: str = "a" * 64, workers_follow: bool = True) -> None:
        """Register an adapter for a task of `TASK_WORDS`."""
        self.registry.service.upsert(catalog_entry(task, task_texts(task), encoder=self.encoder, revision=revision))
        if workers_follow:
            self.workers_catch_up()

    def remove(self, task: str, *, workers_follow: bool = True) -> None:
        self.registry.service.remove(task)
        if workers_follow:
            self.workers_catch_up()

    def workers_catch_up(self) -> None:
        for worker in self.workers:
            worker.service.catalog_generation = self.registry.service.generation

    async def ready(self) -> None:
        await eventually(lambda: self.router.readiness().can_generate)


@asynccontextmanager
async def running_router(
    *, tasks: Sequence[str] = tuple(TASK_WORDS), num_workers: int = 1, **settings
) -> AsyncIterator[RouterStack]:
    """A stack that is ready, with one adapter a task."""
    encoder = HashEncoder()
    registry = FakeRegistry()
    workers = [FakeWorker(name=f"worker-{number}") for number in range(num_workers)]
    for task in tasks:
        registry.service.upsert(catalog_entry(task, task_texts(task), encoder=encoder))
    for worker in workers:
        worker.service.catalog_generation = registry.service.generation
    for part in (registry, *workers):
        await part.start()
    router = build_router(
        RouterSettings(
            rpc_port=0,
            rest_port=0,
            registry_address=registry.address,
            worker_addresses=tuple(worker.address for worker in workers),
            **settings,
        ),
        load_encoder=lambda: encoder,
    )
    await router.start()
    stack = RouterStack(router=router, registry=registry, workers=workers, encoder=encoder)
    try:
        await stack.ready()
        yield stack
    finally:
        await router.stop(grace_seconds=0)
        for part in (*workers, registry):
            await part.stop()


async def eventually(condition: Callable[[], bool], *, timeout_seconds: float = 5.0) -> None:
    """Return once the condition holds; fail if it does not within the time."""
    async with asyncio.timeout(patient(timeout_seconds)):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes' terms: no event to set)
            await asyncio.sleep(0.01)
