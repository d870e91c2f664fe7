"""The promise of `IdempotencyStore`, kept by the fake and by Redis."""

from __future__ import annotations

import asyncio

import pytest

from hilora.errors import Conflict
from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_idempotency import RedisIdempotencyStore
from tests.builders.redis_server import redis_server
from tests.fakes.registry_ports import InMemoryIdempotencyStore

JOB_ID = "a" * 32


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["in memory", "redis"])
async def store(request):
    if request.param == "in memory":
        yield InMemoryIdempotencyStore()
        return
    client = open_redis(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield RedisIdempotencyStore(client)
    await client.aclose()


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
