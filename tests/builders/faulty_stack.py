"""A router whose every connection goes through a fault proxy, and what may be asked of it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from services.router.bootstrap import Router, build_router
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.builders.system import planned_adapters
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import TASK_WORDS, eventually, task_texts
from tests.fakes.worker_service import FakeWorker

CLEAR_CODES = {"worker_lost", "request_timeout", "no_worker_available", "worker_stalled"}
"""How a request may end that a broken worker kept from its answer."""
PROMPT = f"{TASK_WORDS['capitals']} of somewhere"
ANSWER = "Paris is the capital."


@dataclass(frozen=True, kw_only=True)
class FaultyStack:
    """A router whose every connection goes through a proxy."""

    router: Router
    url: str
    registry: FakeRegistry
    registry_line: FaultProxy
    workers: list[FakeWorker]
    lines: list[FaultProxy]
    encoder: HashEncoder
    client: httpx.AsyncClient

    async def ask(self, **fields):
        """A completion, streamed or not, with what the fields say."""
        body = {"model": "auto", "prompt": PROMPT, **fields}
        return await self.client.post("/v1/completions", json=body)

    async def plans(self, task):
        """Whether a text of a task is routed to its adapter."""
        answer = await self.client.post("/v1/route", json={"prompt": TASK_WORDS[task], "model": "auto"})
        return answer.is_success and task in planned_adapters(answer.json())

    def upsert(self, task):
        """Have the registry announce an adapter; the workers have it already."""
        self.registry.service.upsert(catalog_entry(task, task_texts(task), encoder=self.encoder))
        for worker in self.workers:
            worker.service.catalog_generation = self.registry.service.generation

    async def succeeds(self):
        """Whether a completion is answered at this moment."""
        return (await self.ask()).status_code == 200

    def num_running(self):
        """Requests that each worker has."""
        return [worker.service.num_running for worker in self.workers]

    def num_answered(self):
        """Requests that each worker finished."""
        return [len(worker.service.finished) for worker in self.workers]


@asynccontextmanager
async def faulty_stack(*, num_workers=2, tasks=("capitals", "sums"), **settings):
    """A stack that is ready, with one adapter a task."""
    encoder, registry = HashEncoder(), FakeRegistry()
    workers = [FakeWorker(name=f"worker-{number}") for number in range(num_workers)]
    async with AsyncExitStack() as stack:
        for part in (registry, *workers):
            await part.start()
            stack.push_async_callback(part.stop)
        registry_line = await stack.enter_async_context(FaultProxy(registry.address))
        lines = [await stack.enter_async_context(FaultProxy(worker.address)) for worker in workers]
        router = build_router(
            RouterSettings(
                rpc_port=0,
                rest_port=0,
                registry_address=registry_line.address,
                worker_addresses=tuple(line.address for line in lines),
                **settings,
            ),
            load_encoder=lambda: encoder,
        )
        await router.start()
        stack.push_async_callback(router.stop, grace_seconds=0)
        url = f"http://{router.rest_address}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=patient(60), trust_env=False))
        faulty = FaultyStack(
            router=router,
            url=url,
            registry=registry,
            registry_line=registry_line,
            workers=workers,
            lines=lines,
            encoder=encoder,
            client=client,
        )
        for task in tasks:
            faulty.upsert(task)
        await eventually(lambda: router.readiness().can_generate)
        await until(lambda: faulty.plans(tasks[-1]), what="the pool is known")
        yield faulty


async def until(check, *, what, seconds=10.0):
    """Return once an asynchronous check holds."""
    try:
        async with asyncio.timeout(patient(seconds)):
            while not await check():  # noqa: ASYNC110  (what is waited for has no event)
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{what}: not within {seconds:g} seconds")


def ended_clearly(answer):
    """Whether an answer is whole, or an error that says what was wrong."""
    if answer.status_code == 200:
        return answer.json()["choices"][0]["text"] == ANSWER
    return answer.status_code in {502, 503, 504} and answer.json()["error"]["code"] in CLEAR_CODES
