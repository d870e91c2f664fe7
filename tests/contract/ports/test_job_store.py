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


async def followed(store, job_id):
    """The states that a follower sees to the end; silences left out."""
    return [job async for job in store.follow(job_id, heartbeat_seconds=0.05) if job is not None]


class TestSubmissions:
    async def test_the_first_of_a_fingerprint_does_the_work(self, store):
        first, second, other = a_job(), a_job(), a_job()

        assert await store.submit(first, fingerprint="f") == first
        assert await store.submit(second, fingerprint="f") == first
        assert await store.submit(other, fingerprint="g") == other

        assert await store.get(second.job_id) is None
        assert {job.job_id for job in await store.unfinished()} == {first.job_id, other.job_id}

    async def test_at_once_there_is_one_first(self, store):
        jobs = [a_job() for _ in range(20)]

        owners = await asyncio.gather(*(store.submit(job, fingerprint="f") for job in jobs))

        assert len({owner.job_id for owner in owners}) == 1
        assert len(await store.unfinished()) == 1

    async def test_what_is_over_or_called_off_is_not_joined(self, store):
        first, second, third = a_job(), a_job(), a_job()
        await store.submit(first, fingerprint="f")
        await store.put(first.failed(InvalidAdapter("no")))

        assert await store.submit(second, fingerprint="f") == second
        await store.request_cancel(second.job_id)
        assert await store.submit(third, fingerprint="f") == third

    async def test_an_owner_keeps_its_fingerprint_while_it_works(self, store):
        first, second = a_job(), a_job()
        await store.submit(first, fingerprint="f")
        working = first.moved(IngestState.FETCHING, detail="fetching")
        await store.put(working)

        assert await store.submit(second, fingerprint="f") == working


class TestCancelling:
    async def test_the_wish_lasts_until_the_job_is_over(self, store):
        job = a_job()
        await store.put(job)
        assert not await store.is_cancel_requested(job.job_id)

        await store.request_cancel(job.job_id)
        await store.put(job.moved(IngestState.FETCHING, detail=""))
        assert await store.is_cancel_requested(job.job_id)

        await store.put(job.cancelled())
        assert not await store.is_cancel_requested(job.job_id)

    async def test_a_job_that_is_over_is_not_asked(self, store):
        job = a_job()
        await store.put(job)
        await store.put(job.cancelled())

        await store.request_cancel(job.job_id)

        assert not await store.is_cancel_requested(job.job_id)


class TestFollowing:
    async def test_the_present_state_then_each_further_one_to_the_end(self, store):
        job = a_job()
        await store.put(job)
        follower = asyncio.create_task(followed(store, job.job_id))
        for state in (IngestState.FETCHING, IngestState.VALIDATING):
            await asyncio.sleep(0.1)
            job = job.moved(state, detail="")
            await store.put(job)
        await asyncio.sleep(0.1)
        await store.put(job.failed(InvalidAdapter("no")))

        seen = await asyncio.wait_for(follower, 10)

        assert (seen[0].state, seen[-1].state) == (IngestState.PENDING, IngestState.FAILED)
        assert sorted(seen, key=lambda item: item.updated_at) == seen

    async def test_silence_is_a_sign_of_life(self, store):
        job = a_job()
        await store.put(job)
        stream = store.follow(job.job_id, heartbeat_seconds=0.05)

        assert [await anext(stream), await anext(stream), await anext(stream)] == [job, None, None]
        await stream.aclose()

    async def test_a_finished_or_unknown_job_ends_at_once(self, store):
        job = a_job().failed(InvalidAdapter("no"))
        await store.put(job)

        assert await followed(store, job.job_id) == [job]
        assert await followed(store, "0" * 32) == []

    async def test_news_of_others_are_not_shown(self, store):
        job, other = a_job(), a_job()
        await store.put(job)
        follower = asyncio.create_task(followed(store, job.job_id))
        for _ in range(3):
            await asyncio.sleep(0.05)
            await store.put(other)
        await store.put(job.cancelled())

        seen = await asyncio.wait_for(follower, 10)

        assert {item.job_id for item in seen} == {job.job_id}


class TestOutcomes:
    async def test_each_job_counts_once_when_it_is_over(self, store):
        refused, cancelled, waiting = a_job(), a_job(), a_job()
        for job in (refused, cancelled, waiting):
            await store.put(job)
        failed = refused.failed(InvalidAdapter("no", code="c"))
        await store.put(failed)
        await store.put(failed)
        await store.put(cancelled.cancelled())

        assert await store.outcomes() == {"FAILED:c": 1, "CANCELLED": 1}

    async def test_and_so_does_the_time_it_took(self, store):
        assert (await store.durations()).cumulative()[-1] == (float("inf"), 0)
        for seconds in (0.4, 5.0, 5000.0):
            job = dataclasses.replace(a_job(), created_at=100.0)
            await store.put(job)
            over = dataclasses.replace(job.cancelled(), updated_at=100.0 + seconds)
            await store.put(over)
            await store.put(over)
        await store.put(a_job())

        durations = await store.durations()

        counted = dict(durations.cumulative())
        assert (counted[0.5], counted[2.5], counted[5.0], counted[3600.0], counted[float("inf")]) == (1, 1, 2, 2, 3)
        assert durations.total_seconds == pytest.approx(5005.4)
