"""The promise of `IdempotencyStore`, kept by the fake and by Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hilora.errors import Conflict
from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_idempotency import RedisIdempotencyStore
from tests.builders.redis_server import redis_server
from tests.fakes.registry_ports import InMemoryIdempotencyStore

JOB_ID = "a" * 32
LEASE_SECONDS = 1.0
ROOT = Path(__file__).resolve().parents[3]

ANSWERING = f"""
import asyncio, sys
from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_idempotency import RedisIdempotencyStore

async def main():
    store = RedisIdempotencyStore(open_redis(sys.argv[1]), lease_seconds={LEASE_SECONDS})
    assert await store.begin("k", body_digest="d") is None
    async with store.keeping("k", body_digest="d"):
        print("answering", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""
"""A process that never comes to the end of its answer."""


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["in memory", "redis"])
async def store(request):
    if request.param == "in memory":
        yield InMemoryIdempotencyStore(lease_seconds=LEASE_SECONDS)
        return
    client = open_redis(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield RedisIdempotencyStore(client, lease_seconds=LEASE_SECONDS)
    await client.aclose()


def answering(redis_url):
    return subprocess.Popen(
        [sys.executable, "-c", ANSWERING, redis_url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
    )


async def refusal(store, key, digest):
    with pytest.raises(Conflict) as refused:
        await store.begin(key, body_digest=digest)
    return refused.value.code


class TestKeys:
    async def test_the_first_does_it_and_the_next_hear_what_came_of_it(self, store):
        assert await store.begin("k", body_digest="d") is None
        await store.finish("k", body_digest="d", job_id=JOB_ID)

        assert await store.begin("k", body_digest="d") == JOB_ID
        assert await store.begin("other", body_digest="d") is None

    async def test_another_body_is_a_conflict_before_and_after(self, store):
        await store.begin("k", body_digest="d")
        before = await refusal(store, "k", "e")
        await store.finish("k", body_digest="d", job_id=JOB_ID)

        assert before == await refusal(store, "k", "e") == "idempotency_conflict"

    async def test_the_same_while_the_first_is_answered(self, store):
        await store.begin("k", body_digest="d")

        assert await refusal(store, "k", "d") == "idempotency_in_progress"

    async def test_an_abandoned_key_is_free_and_a_result_cannot_be_abandoned(self, store):
        await store.begin("k", body_digest="d")
        await store.abandon("k")
        assert await store.begin("k", body_digest="e") is None

        await store.finish("k", body_digest="e", job_id=JOB_ID)
        await store.abandon("k")
        assert await store.begin("k", body_digest="e") == JOB_ID

    async def test_of_many_at_once_one_is_first(self, store):
        async def begin():
            try:
                return await store.begin("k", body_digest="d") is None
            except Conflict:
                return False

        assert sum(await asyncio.gather(*(begin() for _ in range(20)))) == 1


class TestReservations:
    async def test_one_that_is_kept_outlasts_its_lease(self, store):
        await store.begin("k", body_digest="d")
        async with store.keeping("k", body_digest="d"):
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert await refusal(store, "k", "d") == "idempotency_in_progress"
            await store.finish("k", body_digest="d", job_id=JOB_ID)

        await asyncio.sleep(1.5 * LEASE_SECONDS)
        assert await store.begin("k", body_digest="d") == JOB_ID

    async def test_one_that_nobody_keeps_is_soon_free_for_any_body(self, store):
        await store.begin("k", body_digest="d")
        await asyncio.sleep(1.2 * LEASE_SECONDS)

        assert await store.begin("k", body_digest="e") is None

    async def test_one_that_was_given_up_stays_free_while_its_block_lasts(self, store):
        await store.begin("k", body_digest="d")
        async with store.keeping("k", body_digest="d"):
            await store.abandon("k")
            await asyncio.sleep(LEASE_SECONDS)
            assert await store.begin("k", body_digest="e") is None

    async def test_that_of_a_killed_process_ends_with_its_lease(self, redis_url):
        client = open_redis(redis_url)
        await client.flushall()
        store = RedisIdempotencyStore(client, lease_seconds=LEASE_SECONDS)
        process = answering(redis_url)
        try:
            assert await asyncio.to_thread(process.stdout.readline) == b"answering\n"
            await asyncio.sleep(1.5 * LEASE_SECONDS)
            assert await refusal(store, "k", "d") == "idempotency_in_progress"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        died_at = time.monotonic()
        while await client.exists(*await client.keys("hilora:idempotency:*") or ["none"]):
            assert time.monotonic() - died_at < 5 * LEASE_SECONDS
            await asyncio.sleep(0.02)

        assert time.monotonic() - died_at < 1.5 * LEASE_SECONDS
        assert await store.begin("k", body_digest="d") is None
        await client.aclose()
