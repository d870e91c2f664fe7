"""Workers that join and leave."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from hilora.errors import Unavailable
from services.router.answer import GenerationFinished, TextDelta
from services.router.infra.workers.client import Silence
from services.router.infra.workers.pool import WorkerPool
from tests.builders.worker_pool import order, run
from tests.fakes.router_stack import eventually
from tests.fakes.worker_service import FakeWorker


class ChangingDirectory:
    """Says what it was told last."""

    def __init__(self) -> None:
        self.current: frozenset[str] | None = frozenset()

    async def addresses(self) -> frozenset[str]:
        if self.current is None:
            raise Unavailable("away", code="worker_directory_away")
        return self.current


class TestDiscovery:
    async def test_workers_join_and_leave_while_what_they_have_finishes(self):
        directory = ChangingDirectory()
        old, new = FakeWorker(name="old"), FakeWorker(name="new")
        await old.start()
        await new.start()
        directory.current = frozenset({old.address})
        pool = WorkerPool(directory, request_timeout_seconds=10, lookup_seconds=0.05)
        await pool.start()
        try:
            old.service.seconds_per_token = 0.3
            async with aclosing(pool.generate(order(request_id="before"))) as events:
                await anext(events)
                directory.current = frozenset({new.address})
                await eventually(lambda: any(status.is_leaving for status in pool.fleet().workers))
                await eventually(lambda: pool.fleet().num_live == 1)
                await run(pool, order(request_id="after"))
                rest = [event async for event in events]
            assert "".join(event.text for event in rest if isinstance(event, TextDelta)) == "Paris is the capital."
            assert isinstance(rest[-1], GenerationFinished)
            assert [request.request_id for request in new.service.requests] == ["after"]
            await eventually(lambda: [status.address for status in pool.fleet().workers] == [new.address])
        finally:
            await pool.stop(grace_seconds=0)
            await old.stop()
            await new.stop()

    async def test_a_directory_that_is_away_takes_nobody_along(self):
        directory = ChangingDirectory()
        worker = FakeWorker()
        await worker.start()
        directory.current = frozenset({worker.address})
        pool = WorkerPool(directory, request_timeout_seconds=10, lookup_seconds=0.02)
        await pool.start()
        try:
            directory.current = None
            await asyncio.sleep(0.3)
            assert isinstance((await run(pool, order()))[-1], GenerationFinished)
        finally:
            await pool.stop(grace_seconds=0)
            await worker.stop()

    async def test_a_worker_that_leaves_finishes_its_queue_too(self):
        directory = ChangingDirectory()
        old, new = FakeWorker(name="old"), FakeWorker(name="new")
        await old.start()
        await new.start()
        directory.current = frozenset({old.address})
        silence = Silence(first_event_seconds=1.6, stall_seconds=5)
        pool = WorkerPool(directory, request_timeout_seconds=10, lookup_seconds=0.05, silence=silence)
        await pool.start()
        try:
            old.service.seconds_in_queue = 3.5
            queued = asyncio.create_task(run(pool, order()))
            await eventually(lambda: old.service.num_running == 1)
            directory.current = frozenset({new.address})
            assert isinstance((await queued)[-1], GenerationFinished)
            assert not new.service.requests
        finally:
            await pool.stop(grace_seconds=0)
            await old.stop()
            await new.stop()
