"""The lock that publishers and starting registries take turns with, on a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from hilora.errors import RegistryUnavailable
from services.registry.infra.redis_connection import RedisLock, held, open_redis
from tests.builders.redis_server import redis_server

LEASE_SECONDS = 0.3
KEY = "hilora:test:lock"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def client(redis_url):
    client = open_redis(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


def lock(client):
    return RedisLock(client, key=KEY, lease_seconds=LEASE_SECONDS)


class TestHeldLock:
    async def test_it_is_kept_longer_than_its_lease(self, client):
        async with held(lock(client), wait_seconds=1):
            await asyncio.sleep(3 * LEASE_SECONDS)

            assert not await lock(client).acquire()
        assert await lock(client).acquire()

    async def test_a_dead_holder_keeps_it_for_no_longer_than_its_lease(self, client):
        assert await lock(client).acquire()

        async with held(lock(client), wait_seconds=60):
            assert not await lock(client).acquire()

    async def test_who_waits_too_long_is_told(self, client):
        async with held(lock(client), wait_seconds=1):
            with pytest.raises(RegistryUnavailable) as raised:
                async with held(lock(client), wait_seconds=0):
                    pytest.fail("two hold it")

        assert raised.value.code == "catalog_busy"
