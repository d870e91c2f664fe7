"""The promise of `JobStore`, kept by the fake and by Redis."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from hilora.errors import InvalidAdapter
from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.job import IngestState
from tests.builders.redis_server import redis_server
from tests.builders.registry_values import a_job
from tests.fakes.registry_ports import InMemoryJobStore

LEASE_SECONDS = 0.3
KEPT = 3


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class ExpiringStore(RedisJobStore):
    """The Redis store with the means to wait for the end of a lease."""

    async def expire(self, job_id):
        await asyncio.sleep(LEASE_SECONDS + 0.05)


@pytest.fixture(params=["in memory", "redis"])
async def store(request):
    if request.param == "in memory":
        yield InMemoryJobStore(max_finished_jobs=KEPT)
        return
    client = open_redis(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield ExpiringStore(client, lease_seconds=LEASE_SECONDS, max_finished_jobs=KEPT)
    await client.aclose()


class TestStates:
    async def test_an_unknown_job(self, store):
        assert await store.get("0" * 32) is None
        assert await store.all() == []
        assert await store.unfinished() == []

    async def test_what_is_put_is_read(self, store):
        job = a_job().failed(InvalidAdapter("no", code="c", remedy="r", place="p"))
        await store.put(job)

        read = await store.get(job.job_id)

        assert read == job
        assert (type(read.error), read.error.code, read.error.remedy) == (InvalidAdapter, "c", "r")

    async def test_all_are_listed_newest_first_and_the_unfinished_oldest_first(self, store):
        first, second, third = a_job(created_at=1), a_job(created_at=2), a_job(created_at=3)
        for job in (second, third, first):
            await store.put(job)
        await store.put(second.failed(InvalidAdapter("no")))

        assert [job.job_id for job in await store.all()] == [third.job_id, second.job_id, first.job_id]
        assert [job.job_id for job in await store.unfinished()] == [first.job_id, third.job_id]

    async def test_finished_jobs_are_forgotten_in_order_and_unfinished_never(self, store):
        waiting = a_job(created_at=0)
        await store.put(waiting)
        finished = []
        for number in range(KEPT + 2):
            job = dataclasses.replace(a_job(created_at=number), state=IngestState.READY, updated_at=float(number))
            await store.put(job)
            finished.append(job)

        assert [await store.get(job.job_id) is not None for job in finished] == [False, False, True, True, True]
        assert await store.get(waiting.job_id) is not None


class TestLeases:
    async def test_one_has_the_right_until_it_gives_it_back(self, store):
        job_id = a_job().job_id
        lease = await store.claim(job_id)

        assert await store.is_claimed(job_id)
        assert await store.claim(job_id) is None
        await lease.release()
        assert not await store.is_claimed(job_id)
        assert await store.claim(job_id) is not None

    async def test_jobs_are_claimed_apart(self, store):
        assert await store.claim(a_job().job_id) is not None
        assert await store.claim(a_job().job_id) is not None

    async def test_an_extended_lease_holds(self, store):
        lease = await store.claim(a_job().job_id)

        for _ in range(3):
            await asyncio.sleep(LEASE_SECONDS / 2)
            assert await lease.extend()

    async def test_an_expired_lease_cannot_be_kept_nor_taken_from_the_next(self, store):
        job_id = a_job().job_id
        lease = await store.claim(job_id)
        await store.expire(job_id)
        successor = await store.claim(job_id)

        assert successor is not None
        assert not await lease.extend()
        await lease.release()
        assert await store.is_claimed(job_id)
        assert await successor.extend()
