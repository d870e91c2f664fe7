"""Workers that are behind the catalogue."""

from __future__ import annotations

import asyncio

from tests.builders.faulty_stack import faulty_stack, until
from tests.fakes.router_stack import eventually


class TestOldGeneration:
    async def test_a_worker_is_not_used_until_it_catches_up(self):
        async with faulty_stack() as stack:
            late, current = stack.workers
            stack.upsert("poems")
            late.service.catalog_generation = stack.registry.service.generation - 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            # What the pool knows of a worker may be a second old.
            await asyncio.sleep(1.5)
            before = stack.num_answered()

            answers = await asyncio.gather(*(stack.ask() for _ in range(12)))

            assert [answer.status_code for answer in answers] == [200] * 12
            assert [now - then for now, then in zip(stack.num_answered(), before, strict=True)] == [0, 12]
            late.service.catalog_generation = current.service.catalog_generation
            # It alone is left, so that nothing but its generation decides.
            current.service.is_draining = True
            await eventually(lambda: stack.router._workers.fleet().num_live == 1)
            assert await stack.succeeds()
            assert stack.num_answered()[0] == before[0] + 1

    async def test_a_request_waits_for_a_worker_that_is_about_to_catch_up(self):
        async with faulty_stack(num_workers=1) as stack:
            worker = stack.workers[0].service
            stack.upsert("poems")
            worker.catalog_generation -= 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            await asyncio.sleep(1.5)

            waiting = asyncio.create_task(stack.ask())
            await asyncio.sleep(0.5)
            assert not waiting.done()
            worker.catalog_generation += 1

            assert (await waiting).status_code == 200

    async def test_it_is_refused_clearly_where_none_does(self):
        async with faulty_stack(num_workers=1) as stack:
            stack.upsert("poems")
            stack.workers[0].service.catalog_generation -= 1
            await until(lambda: stack.plans("poems"), what="the new picture is used")
            await asyncio.sleep(1.5)

            answer = await stack.ask()

            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "no_worker_available"
