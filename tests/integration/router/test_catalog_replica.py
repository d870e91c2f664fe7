"""The replica against a registry that cuts, resyncs, goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from hilora.access import AdapterAccess, TrustTier
from hilora.errors import RegistryUnavailable
from hilora_rpc.v1 import registry_pb2
from services.router.infra.catalog_replica import CatalogReplica
from services.router.infra.pool_fitter import PoolFitter
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import eventually, task_texts

_ENCODER = HashEncoder()


def _entry(task):
    return catalog_entry(task, task_texts(task), encoder=_ENCODER)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    fake = FakeRegistry()
    for task in ("capitals", "sums", "poems"):
        fake.service.upsert(_entry(task))
    await fake.start()
    yield fake
    await fake.stop()


@asynccontextmanager
async def following(registry: FakeRegistry) -> AsyncIterator[CatalogReplica]:
    replica = CatalogReplica(registry.address, encoder=lambda: (_ENCODER.encoder_id, _ENCODER.embedding_dim))
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop(grace_seconds=0)


def _is_at(replica: CatalogReplica, generation: int) -> bool:
    try:
        view = replica.view()
    except RegistryUnavailable:
        return False
    return view.catalog_generation == view.router_generation == generation


class TestSnapshot:
    async def test_all_chunks_are_taken(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 3))
            assert set(replica.view().adapters) == {"capitals", "sums", "poems"}
            assert replica.view().router.num_adapters == 3

    async def test_a_cut_snapshot_is_not_used(self, registry):
        registry.service.cut_snapshots = 2
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 3))
            assert len(replica.view().adapters) == 3
            assert registry.service.num_snapshots == 3

    async def test_before_it_there_is_an_error_and_not_an_empty_catalogue(self, registry):
        await registry.stop()
        async with following(registry) as replica:
            with pytest.raises(RegistryUnavailable) as raised:
                replica.view()
            assert raised.value.code == "catalog_not_loaded"
            await registry.start()
            await eventually(lambda: _is_at(replica, 3))


class TestWatch:
    async def test_several_changes_arrive_in_order(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.remove("sums")
            registry.service.upsert(_entry("sums"))
            registry.service.remove("poems")
            await eventually(lambda: _is_at(replica, 6))
            assert set(replica.view().adapters) == {"capitals", "sums"}
            assert registry.service.num_snapshots == 1

    async def test_in_a_long_row_of_changes_fits_rest(self, registry, monkeypatch):
        fits: list[tuple[float, float]] = []
        real = PoolFitter.current

        async def slowly(self, profiles, *, catalog_generation):
            started = time.monotonic()
            await asyncio.sleep(0.05)
            router = await real(self, profiles, catalog_generation=catalog_generation)
            fits.append((started, time.monotonic()))
            return router

        monkeypatch.setattr(PoolFitter, "current", slowly)
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            for _ in range(20):
                registry.service.upsert(_entry("sums"))
                await asyncio.sleep(0.05)
            await eventually(lambda: _is_at(replica, 23))

        assert len(fits) > 1
        for (started, ended), (next_started, _) in pairwise(fits):
            assert next_started - ended >= min(2.0 * (ended - started), 0.9)

    async def test_a_heartbeat_at_our_generation_changes_nothing(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.heartbeat()
            registry.service.remove("sums")
            await eventually(lambda: _is_at(replica, 4))
            assert registry.service.num_snapshots == 1

    async def test_a_heartbeat_at_another_generation_means_something_was_missed(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.generation = 9
            registry.service.heartbeat()
            await eventually(lambda: _is_at(replica, 9))

    async def test_resync_takes_a_new_snapshot_even_to_a_lower_generation(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.generation = 1
            del registry.service.entries["poems"]
            registry.service.resync()
            await eventually(lambda: _is_at(replica, 1))
            assert set(replica.view().adapters) == {"capitals", "sums"}


class TestOutage:
    async def test_the_last_catalogue_stays_in_use_and_changes_are_caught_up(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            await eventually(lambda: _is_at(replica, 3))
            assert replica.is_following
            await registry.stop()
            await eventually(lambda: not replica.is_following)
            assert set(replica.view().adapters) == {"capitals", "sums", "poems"}
            registry.service.remove("poems")
            await registry.start()
            await eventually(lambda: _is_at(replica, 4))
            assert replica.is_following

    async def test_a_watch_that_ends_is_begun_again(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.end_watches()
            await eventually(lambda: registry.service.num_snapshots == 2)
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.remove("sums")
            await eventually(lambda: _is_at(replica, 4))


class TestAliases:
    async def test_they_come_with_the_snapshot_and_with_every_change(self, registry):
        registry.service.set_aliases(prod="sums")
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 4))
            assert replica.view().aliases == {"prod": "sums"}
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.set_aliases(prod="poems@1", next="sums")
            await eventually(lambda: _is_at(replica, 5))
            assert replica.view().aliases == {"prod": "poems@1", "next": "sums"}
            assert registry.service.num_snapshots == 1


class TestVersions:
    async def test_access_and_the_other_versions_are_kept(self, registry):
        entry = _entry("sums")
        entry.version = 2
        entry.trust_tier = registry_pb2.TRUST_TIER_TRUSTED
        entry.visible_to.append("acme")
        entry.other_versions.add(version=1, adapter_id="sums@bbbbbbbbbbbb", revision="b" * 64, lora_rank=3)
        registry.service.upsert(entry)
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 4))
            adapter = replica.view().adapters["sums"]

        assert adapter.access == AdapterAccess(trust_tier=TrustTier.TRUSTED, visible_to=("acme",))
        old = adapter.selected("1")
        assert (old.adapter_id, old.lora_rank, old.access) == ("sums@bbbbbbbbbbbb", 3, adapter.access)
        assert replica.view().router.num_adapters == 3


class TestAnotherEncoder:
    async def test_what_the_old_one_said_of_the_same_versions_stays_in_use(self, registry):
        other = HashEncoder(encoder_id="hash:2", embedding_dim=16)
        tasks = ("capitals", "sums", "poems")
        async with following(registry) as replica:
            await eventually(lambda: registry.service.num_watchers == 1 and _is_at(replica, 3))
            before = replica.view()
            registry.service.replace(
                *(catalog_entry(task, task_texts(task), encoder=other) for task in tasks[:2]),
                catalog_entry("poems", task_texts("poems"), encoder=other, revision="b" * 64),
            )
            await eventually(lambda: _is_at(replica, 4))
            after = replica.view()

        assert before.fitted_names == set(tasks)
        assert after.fitted_names == {"capitals", "sums"}, "of the new version nothing is known yet"
        assert set(after.adapters) == set(tasks)
        assert list(after.ignored) == ["poems"]

    async def test_a_router_that_starts_later_can_only_name_them(self, registry):
        other = HashEncoder(encoder_id="hash:2")
        registry.service.replace(catalog_entry("sums", task_texts("sums"), encoder=other))
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 4))
            view = replica.view()

        assert (set(view.adapters), view.fitted_names) == ({"sums"}, frozenset())
        assert "hash:2" in view.ignored["sums"]


class TestWaiting:
    async def test_wait_beyond_tells_whether_it_came(self, registry):
        async with following(registry) as replica:
            await eventually(lambda: _is_at(replica, 3))
            assert await replica.wait_beyond(2, timeout_seconds=0.01)
            assert not await replica.wait_beyond(3, timeout_seconds=0.05)
            await eventually(lambda: registry.service.num_watchers == 1)
            registry.service.remove("sums")
            assert await replica.wait_beyond(3, timeout_seconds=5)
