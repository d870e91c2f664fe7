"""The promise of `CatalogIndex`, kept by the fake and by Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import redis.asyncio

from hilora.access import AdapterAccess, TrustTier
from hilora.errors import Conflict
from services.registry.catalog_entry import (
    CatalogChange,
    CatalogHeartbeat,
    CatalogResync,
    CatalogSnapshot,
    VersionEntry,
)
from services.registry.infra.redis_catalog import RedisCatalogIndex
from services.registry.infra.redis_connection import open_redis
from tests.builders.redis_server import redis_server
from tests.builders.registry_values import an_entry
from tests.fakes.registry_ports import InMemoryCatalogIndex

KEPT_CHANGES = 5
BEAT = 0.05


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class Emptied(RedisCatalogIndex):
    """The Redis index with the means to empty its server."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, max_kept_changes=KEPT_CHANGES)
        self._client = client

    async def lose_everything(self) -> None:
        await self._client.flushall()


@pytest.fixture(params=["in memory", "redis"])
async def index(request):
    if request.param == "in memory":
        yield InMemoryCatalogIndex(max_kept_changes=KEPT_CHANGES)
        return
    client = open_redis(request.getfixturevalue("redis_url"))
    await client.flushall()
    yield Emptied(client)
    await client.aclose()


def change(generation, name, *, previous=None, is_gone=False):
    return CatalogChange(
        catalog_generation=generation,
        previous_generation=generation - 1 if previous is None else previous,
        adapter_name=name,
        entry=None if is_gone else an_entry(name, generation=generation, seed=generation),
    )


async def begin(index, generation=1):
    async with index.publishing() as transaction:
        await transaction.replace(CatalogSnapshot(catalog_generation=generation))


async def commit(index, *changes):
    async with index.publishing() as transaction:
        for item in changes:
            await transaction.commit(item)


async def take(news, count):
    return [await asyncio.wait_for(anext(news), 5) for _ in range(count)]


class TestReading:
    async def test_an_empty_index_says_so(self, index):
        assert await index.read() is None
        assert await index.generation() is None
        assert await index.entry("a") is None

    async def test_what_is_committed_is_read(self, index):
        await begin(index)
        await commit(index, change(2, "b"), change(3, "a"))

        snapshot = await index.read()

        assert snapshot.catalog_generation == await index.generation() == 3
        assert list(snapshot.entries) == ["a", "b"]
        assert snapshot.entries["a"] == await index.entry("a") == an_entry("a", generation=3, seed=3)

    async def test_what_is_removed_is_gone(self, index):
        await begin(index)
        await commit(index, change(2, "a"), change(3, "a", is_gone=True))

        assert (await index.read()).entries == {}
        assert await index.entry("a") is None

    async def test_a_replacement_leaves_nothing_of_before(self, index):
        await begin(index)
        await commit(index, change(2, "a"))
        entries = {"b": an_entry("b", generation=9)}

        async with index.publishing() as transaction:
            await transaction.replace(CatalogSnapshot(catalog_generation=10, entries=entries))

        assert await index.read() == CatalogSnapshot(catalog_generation=10, entries=entries)


class TestAliases:
    async def test_they_are_read_replaced_and_followed_like_entries(self, index):
        await begin(index)
        aliases = CatalogChange(catalog_generation=2, previous_generation=1, aliases={"prod": "a@1"})
        await commit(index, aliases, change(3, "a"))

        assert (await index.read()).aliases == {"prod": "a@1"}
        assert await take(index.follow(1, heartbeat_seconds=5), 2) == [aliases, change(3, "a")]
        none = CatalogChange(catalog_generation=4, previous_generation=3, aliases={})
        await commit(index, none)
        assert (await index.read()).aliases == {}
        async with index.publishing() as transaction:
            await transaction.replace(CatalogSnapshot(catalog_generation=9, aliases={"next": "b"}))
        assert (await index.read()).aliases == {"next": "b"}

    async def test_an_entry_keeps_access_and_other_versions(self, index):
        await begin(index)
        other = VersionEntry(
            version=1,
            revision="c" * 64,
            lora_rank=2,
            num_modules=1,
            component_bytes=5,
            created_at=0.5,
            component_sha256={"svd": "d" * 64},
        )
        access = AdapterAccess(trust_tier=TrustTier.UNTRUSTED, visible_to=("acme",))
        entry = replace(an_entry("a", generation=2), version=2, access=access, other_versions=(other,))
        await commit(index, CatalogChange(catalog_generation=2, previous_generation=1, adapter_name="a", entry=entry))

        assert await index.entry("a") == entry


class TestPublishing:
    async def test_a_transaction_knows_what_is_published(self, index):
        async with index.publishing() as transaction:
            assert transaction.catalog_generation is None
            await transaction.replace(CatalogSnapshot(catalog_generation=4))
            assert transaction.catalog_generation == 4
            await transaction.commit(change(5, "a"))
            assert transaction.catalog_generation == 5
            assert (await transaction.entry("a")).adapter_name == "a"

    async def test_one_publishes_at_a_time(self, index):
        await begin(index)
        running = []

        async def publish(name):
            async with index.publishing() as transaction:
                running.append(name)
                assert len(running) == 1
                generation = transaction.catalog_generation
                await asyncio.sleep(0.01)
                await transaction.commit(change(generation + 1, name))
                running.remove(name)

        await asyncio.gather(*(publish(f"a{number}") for number in range(5)))

        snapshot = await index.read()
        assert snapshot.catalog_generation == 6
        assert sorted(entry.catalog_generation for entry in snapshot.entries.values()) == [2, 3, 4, 5, 6]

    async def test_the_right_is_given_back_after_an_error(self, index):
        with pytest.raises(ZeroDivisionError):
            async with index.publishing():
                raise ZeroDivisionError

        await asyncio.wait_for(begin(index), 5)

    async def test_who_lost_the_right_publishes_nothing(self, index):
        await begin(index)
        async with index.publishing() as transaction:
            await index.lose_everything()
            with pytest.raises(Conflict) as raised:
                await transaction.commit(change(2, "a"))
            with pytest.raises(Conflict):
                await transaction.replace(CatalogSnapshot(catalog_generation=3))

        assert raised.value.code == "catalog_lock_lost"
        assert await index.read() is None

    async def test_a_transaction_knows_whether_it_still_has_the_right(self, index):
        await begin(index)
        async with index.publishing() as transaction:
            assert await transaction.is_held()
            await index.lose_everything()
            assert not await transaction.is_held()

    async def test_a_step_from_another_generation_is_refused(self, index):
        await begin(index)
        async with index.publishing() as transaction:
            with pytest.raises(Conflict):
                await transaction.commit(change(5, "a"))

        assert await index.generation() == 1


class TestFollowing:
    async def test_old_and_new_changes_come_in_order(self, index):
        await begin(index)
        await commit(index, change(2, "a"))
        news = index.follow(1, heartbeat_seconds=5)
        (first,) = await take(news, 1)
        waiting = asyncio.create_task(take(news, 2))
        await asyncio.sleep(0.02)
        await commit(index, change(3, "b"), change(4, "a", is_gone=True))

        assert [first, *await waiting] == [change(2, "a"), change(3, "b"), change(4, "a", is_gone=True)]

    async def test_a_heartbeat_says_that_nothing_happened(self, index):
        await begin(index, 7)

        assert await take(index.follow(7, heartbeat_seconds=BEAT), 2) == [CatalogHeartbeat(catalog_generation=7)] * 2

    @pytest.mark.parametrize("after", [0, 3, 99])
    async def test_an_unknown_generation_has_to_start_over(self, index, after):
        await begin(index, 7)

        news = [item async for item in index.follow(after, heartbeat_seconds=BEAT)]

        assert news == [CatalogResync(catalog_generation=7)]

    async def test_so_does_one_further_back_than_the_kept_changes(self, index):
        await begin(index)
        await commit(index, *(change(number, "a") for number in range(2, 12)))

        assert isinstance((await take(index.follow(5, heartbeat_seconds=BEAT), 1))[0], CatalogResync)
        assert await take(index.follow(6, heartbeat_seconds=BEAT), 1) == [change(7, "a")]

    async def test_a_replacement_makes_every_follower_start_over(self, index):
        await begin(index)
        news = index.follow(1, heartbeat_seconds=BEAT)
        await take(news, 1)
        await begin(index, 2)

        rest = [item async for item in news]

        assert rest[-1] == CatalogResync(catalog_generation=2)

    async def test_a_follower_that_slept_through_a_loss_is_not_fooled_by_new_changes(self, index):
        await begin(index)
        news = index.follow(1, heartbeat_seconds=5)
        waiting = asyncio.create_task(anext(news))
        await asyncio.sleep(0.02)
        await index.lose_everything()
        await begin(index, 2)
        await commit(index, change(3, "b"))

        assert isinstance(await asyncio.wait_for(waiting, 6), CatalogResync)

    async def test_a_loss_is_noticed_without_any_change(self, index):
        await begin(index)
        news = index.follow(1, heartbeat_seconds=BEAT)
        await take(news, 1)
        await index.lose_everything()

        rest = [item async for item in news]

        assert rest[-1] == CatalogResync(catalog_generation=0)
