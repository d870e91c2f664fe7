"""The promise of `PlanStore` and `SessionStore`, kept in memory and by Redis."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from services.router.infra.local_memory import LocalMemory
from services.router.infra.redis_memory import RedisOutages, shared_plans, shared_sessions
from tests.builders.plan_records import plan_record, session_record
from tests.builders.redis_server import RedisServer, redis_server

TTL_SECONDS = 0.4


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def redis(request):
    client = Redis.from_url(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield client
    await client.aclose()


def local(*, ttl_seconds=60.0, max_records=100):
    return LocalMemory(ttl_seconds=ttl_seconds, max_records=max_records)


def make(kind, redis, **limits):
    match kind:
        case "plans":
            return shared_plans(redis, local(**limits))
        case "sessions":
            return shared_sessions(redis, local(**limits))
        case _:
            return local(**limits)


KINDS = [("in memory", "plan"), ("in memory", "session"), ("plans", "plan"), ("sessions", "session")]


@pytest.fixture(params=KINDS, ids=[" ".join(kind) for kind in KINDS])
async def case(request, redis):
    """How to make a store, and a record."""
    kind, what = request.param
    record = plan_record if what == "plan" else session_record
    return lambda **limits: make(kind, redis, **limits), record


class TestStores:
    async def test_what_is_put_is_got_as_it_was(self, case):
        open_store, record = case
        store = open_store()
        assert await store.get("k") is None
        await store.put("k", record())
        assert await store.get("k") == record()
        assert await store.get("other") is None

    async def test_its_time_ends(self, case):
        open_store, record = case
        store = open_store(ttl_seconds=TTL_SECONDS)
        await store.put("k", record())
        await asyncio.sleep(TTL_SECONDS + 0.1)
        assert await store.get("k") is None

    async def test_putting_it_again_gives_it_more_time(self, case):
        open_store, record = case
        store = open_store(ttl_seconds=TTL_SECONDS)
        for _ in range(4):
            await store.put("k", record())
            await asyncio.sleep(TTL_SECONDS * 0.6)
        assert await store.get("k") == record()

    async def test_many_at_once_do_not_get_into_each_other_s_way(self, case):
        open_store, record = case
        store = open_store()
        names = [f"k{number}" for number in range(50)]
        await asyncio.gather(*(store.put(name, record(name)) for name in names))
        assert await asyncio.gather(*(store.get(name) for name in names)) == [record(name) for name in names]


class TestSessions:
    @pytest.mark.parametrize("kind", ["in memory", "sessions"])
    async def test_the_last_one_put_is_the_one(self, kind, redis):
        store = make(kind, redis)
        for turn in (1, 2, 3):
            await store.put("k", session_record(turn=turn))
        assert (await store.get("k")).turn == 3


class TestLocal:
    async def test_the_one_that_was_put_longest_ago_goes_first(self):
        store = local(max_records=2)
        for key in ("a", "b", "a", "c"):
            await store.put(key, plan_record(key))
        assert [await store.get(key) is not None for key in "abc"] == [True, False, True]
        assert len(store) == 2


class TestReplicas:
    async def test_what_one_router_puts_another_gets(self, redis):
        for opened, record in ((shared_plans, plan_record()), (shared_sessions, session_record())):
            await opened(redis, local()).put("k", record)
            assert await opened(redis, local()).get("k") == record

    async def test_a_session_s_newest_state_wins_over_one_s_own(self, redis):
        one, other = shared_sessions(redis, local()), shared_sessions(redis, local())
        await one.put("k", session_record(turn=1))
        await other.put("k", session_record(turn=2))
        assert (await one.get("k")).turn == 2

    async def test_a_plan_that_is_held_is_not_written_again_before_its_time(self, redis):
        store = shared_plans(redis, local(ttl_seconds=60.0))
        await store.put("k", plan_record())
        await redis.delete("hilora:plans:k")
        await store.put("k", plan_record())
        assert await redis.get("hilora:plans:k") is None
        assert await store.get("k") == plan_record()

    async def test_what_cannot_be_read_is_forgotten(self, redis):
        for prefix, opened in (("plans", shared_plans), ("sessions", shared_sessions)):
            for junk in (b"{", b"[]", b"null", b'{"plan_id": 1}', b"\xff"):
                await redis.set(f"hilora:{prefix}:k", junk)
                assert await opened(redis, local()).get("k") is None


class TestOutage:
    async def test_a_router_goes_on_with_what_it_holds(self, tmp_path):
        server = RedisServer(tmp_path / "redis")
        server.start()
        client = Redis.from_url(server.url, socket_connect_timeout=1.0)
        plans, sessions = shared_plans(client, local()), shared_sessions(client, local())
        try:
            await plans.put("k", plan_record())
            await sessions.put("k", session_record(turn=1))
            server.kill()
            await sessions.put("k", session_record(turn=2))
            await plans.put("l", plan_record("l"))
            assert await plans.get("k") == plan_record()
            assert await plans.get("l") == plan_record("l")
            assert await sessions.get("k") == session_record(turn=2)
            assert await sessions.get("never") is None
        finally:
            await client.aclose()
            server.close()

    async def test_a_redis_that_comes_back_empty_is_filled_again(self, tmp_path):
        server = RedisServer(tmp_path / "redis")
        server.start()
        client = Redis.from_url(server.url, socket_connect_timeout=1.0)
        outages = RedisOutages()
        plans = shared_plans(client, local(), outages=outages)
        sessions = shared_sessions(client, local(), outages=outages)
        try:
            await plans.put("k", plan_record())
            await sessions.put("k", session_record(turn=1))
            server.kill()
            await sessions.put("k", session_record(turn=2))
            await plans.put("k", plan_record())
            server.start()
            await asyncio.sleep(1.1)
            assert await sessions.get("k") == session_record(turn=2)
            await sessions.put("k", session_record(turn=3))
            await plans.put("k", plan_record())
            assert await shared_sessions(client, local()).get("k") == session_record(turn=3)
            assert await shared_plans(client, local()).get("k") == plan_record()
        finally:
            await client.aclose()
            server.close()
