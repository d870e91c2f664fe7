"""The router's pool of workers in front of fake ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from hilora.routing_plan import RocBudget, RoutingPlan
from services.router.infra.workers.client import Silence
from services.router.infra.workers.directories import ListedWorkers
from services.router.infra.workers.pool import WorkerPool
from services.router.request import GenerationRequest, TextPrompt, WorkOrder
from tests.fakes.worker_service import FakeWorker


@asynccontextmanager
async def running(
    num_workers: int,
    *,
    catch_up_seconds: float = 0.3,
    request_timeout_seconds: float = 10,
    silence: Silence | None = None,
) -> AsyncIterator[tuple[WorkerPool, Sequence[FakeWorker]]]:
    workers = [FakeWorker(name=f"worker-{number}") for number in range(num_workers)]
    for worker in workers:
        await worker.start()
    pool = WorkerPool(
        ListedWorkers(worker.address for worker in workers),
        request_timeout_seconds=request_timeout_seconds,
        catch_up_seconds=catch_up_seconds,
        silence=silence,
    )
    await pool.start()
    try:
        yield pool, workers
    finally:
        await pool.stop(grace_seconds=0)
        for worker in workers:
            await worker.stop()


def order(
    *,
    catalog_generation: int = 0,
    request_id: str = "r",
    timeout_seconds: float | None = None,
    adapter: str = "a",
    text: str = "one two",
) -> WorkOrder:
    budget = RocBudget(adapter_id=f"{adapter}@1", adapter_name=adapter, lora_rank=8, num_rocs=3, weight=0.5)
    return WorkOrder(
        request=GenerationRequest(request_id=request_id, prompt=TextPrompt(text=text), timeout_seconds=timeout_seconds),
        plan=RoutingPlan(budgets=(budget,), catalog_generation=catalog_generation),
    )


async def run(pool: WorkerPool, work: WorkOrder) -> list:
    async with aclosing(pool.generate(work)) as events:
        return [event async for event in events]
