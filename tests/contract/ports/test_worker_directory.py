"""The promise of `WorkerDirectory`, kept by a list, by DNS, by Redis and by several together."""

from __future__ import annotations

import asyncio
import socket

import pytest
from redis.asyncio import Redis

from hilora.errors import Unavailable
from services.common.worker_entries import KEY_PREFIX, address_in
from services.router.infra.workers.directories import DnsWorkers, ListedWorkers, RedisWorkers, directory_of
from services.worker.infra.registration import RedisRegistration
from tests.builders.redis_server import RedisServer, redis_server
from tests.fakes.router_stack import eventually


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def redis(redis_url):
    client = Redis.from_url(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(params=["list", "dns", "redis", "joined"])
async def directory(request, redis, redis_url):
    """One that knows 127.0.0.1:7001, whatever it is."""
    registration = RedisRegistration(redis_url, worker_id="w", address="127.0.0.1:7001")
    if request.param == "redis":
        await registration.start()
        while not await redis.exists(f"{KEY_PREFIX}w"):  # noqa: ASYNC110  (Redis tells nobody)
            await asyncio.sleep(0.01)
    entries = {
        "list": ("127.0.0.1:7001",),
        "dns": ("dns:///127.0.0.1:7001",),
        "redis": ("redis",),
        "joined": ("127.0.0.1:7001", "dns:///127.0.0.1:7001", "redis"),
    }
    yield directory_of(entries[request.param], redis=redis)
    await registration.stop(grace_seconds=0)


class TestEvery:
    async def test_names_each_worker_once(self, directory):
        assert await directory.addresses() == {"127.0.0.1:7001"}

    async def test_can_be_asked_again(self, directory):
        assert await directory.addresses() == await directory.addresses()


class TestDns:
    async def test_all_addresses_of_a_name_are_workers(self, monkeypatch):
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 7001)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 7001)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 7001, 0, 0)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        addresses = await DnsWorkers("dns:///workers:7001").addresses()
        assert addresses == {"10.0.0.1:7001", "10.0.0.2:7001", "[fd00::1]:7001"}

    async def test_a_name_that_does_not_resolve_is_an_error_not_an_empty_fleet(self):
        with pytest.raises(Unavailable) as raised:
            await DnsWorkers("dns:///workers.invalid:7001").addresses()
        assert raised.value.code == "worker_directory_away"


class TestRedis:
    async def test_a_worker_that_stops_is_gone_at_once(self, redis, redis_url):
        registration = RedisRegistration(redis_url, worker_id="x", address="h:1")
        await registration.start()
        while not await redis.exists(f"{KEY_PREFIX}x"):  # noqa: ASYNC110  (Redis tells nobody)
            await asyncio.sleep(0.01)
        assert 0 < await redis.ttl(f"{KEY_PREFIX}x") <= 10
        await registration.stop(grace_seconds=0)
        assert await RedisWorkers(redis).addresses() == set()

    async def test_what_is_no_entry_is_passed_over(self, redis):
        await redis.set(f"{KEY_PREFIX}1", "{")
        await redis.set(f"{KEY_PREFIX}2", '{"address": 3}')
        await redis.set(f"{KEY_PREFIX}3", '{"address": "h:3", "more": 1}')
        assert await RedisWorkers(redis).addresses() == {"h:3"}
        assert address_in("[]") is None

    async def test_without_redis_it_says_so_and_a_worker_registers_when_it_is_back(self, tmp_path, monkeypatch):
        monkeypatch.setattr("services.worker.infra.registration.HEARTBEAT_SECONDS", 0.05)
        server = RedisServer(tmp_path / "redis")
        client = Redis.from_url(server.url)
        registration = RedisRegistration(server.url, worker_id="y", address="h:1")
        await registration.start()
        try:
            with pytest.raises(Unavailable):
                await RedisWorkers(client).addresses()
            await asyncio.to_thread(server.start)
            found = set()

            async def look() -> None:
                while not found:
                    found.update(await RedisWorkers(client).addresses())
                    await asyncio.sleep(0.02)

            looking = asyncio.create_task(look())
            await eventually(lambda: found == {"h:1"})
            await looking
        finally:
            await registration.stop(grace_seconds=0)
            await client.aclose()
            server.close()


class TestForm:
    def test_addresses_alone_are_a_list(self):
        assert isinstance(directory_of(("a:1", "b:2"), redis=None), ListedWorkers)

    @pytest.mark.parametrize("entry", ["a", "a:", ":1", "a:0", "a:99999", "dns:///a"])
    def test_what_is_no_address_is_refused_at_start(self, entry):
        with pytest.raises(ValueError, match="no worker address"):
            directory_of((entry,), redis=None)

    def test_redis_needs_a_redis(self):
        with pytest.raises(ValueError, match="HILORA_ROUTER_REDIS_URL"):
            directory_of(("redis",), redis=None)
