"""Which versions a worker may serve, and which it is told to let go of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hilora.adapter import RocBasis
from hilora_rpc.v1 import registry_pb2
from services.common.rpc_client import open_channel
from services.worker.infra.catalog_follower import CatalogFollower
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually


def entry(name, current, *others):
    """A name whose versions are called by letters."""
    message = registry_pb2.CatalogEntry(
        adapter_id=f"{name}@{current}", adapter_name=name, component_sha256={"svd": f"sha-{current}"}
    )
    for other in others:
        message.other_versions.add(adapter_id=f"{name}@{other}", component_sha256={"svd": f"sha-{other}"})
    return message


class Following:
    def __init__(self, channel):
        self.told = []
        self.follower = CatalogFollower(
            channel=channel,
            peer="registry",
            on_departure=lambda adapter_id: self.told.append(("gone", adapter_id)),
            on_arrival=lambda name, adapter_id: self.told.append(("current", adapter_id)),
            on_superseded=lambda adapter_id: self.told.append(("nameable", adapter_id)),
        )

    async def news(self, generation):
        """What was said up to a generation, since the last question."""
        await eventually(lambda: self.follower.catalog_generation == generation)
        told, self.told = self.told, []
        return told


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def following(registry) -> AsyncIterator[Following]:
    registry.service.upsert(entry("a", "x"))
    channel = open_channel(registry.address)
    following = Following(channel)
    await following.follower.start()
    await eventually(lambda: registry.service.num_watchers == 1)
    assert await following.news(1) == [("current", "a@x")]
    yield following
    await following.follower.stop(grace_seconds=0)
    await channel.close()


class TestUpdateInPlace:
    async def test_the_version_before_can_still_be_served(self, registry, following):
        registry.service.upsert(entry("a", "y", "x"))

        assert await following.news(2) == [("nameable", "a@x"), ("current", "a@y")]
        assert following.follower.has_adapter("a@x")
        assert following.follower.id_of("a") == "a@y"
        assert following.follower.checksum_of("a@x", RocBasis.SVD) == "sha-x"

    async def test_a_rollback_makes_it_current_again(self, registry, following):
        registry.service.upsert(entry("a", "y", "x"))
        await following.news(2)
        registry.service.upsert(entry("a", "x", "y"))

        assert await following.news(3) == [("nameable", "a@y"), ("current", "a@x")]

    async def test_a_collected_version_leaves_alone(self, registry, following):
        registry.service.upsert(entry("a", "y", "x"))
        await following.news(2)
        registry.service.upsert(entry("a", "y"))

        assert await following.news(3) == [("gone", "a@x")]
        assert not following.follower.has_adapter("a@x")
        assert following.follower.checksum_of("a@x", RocBasis.SVD) == "sha-x", "accepted requests may fetch it still"

    async def test_another_profile_is_no_news(self, registry, following):
        changed = entry("a", "x")
        changed.profile_id = "p" * 64
        registry.service.upsert(changed)

        assert await following.news(2) == []


class TestLeaving:
    async def test_a_retired_name_takes_all_its_versions_along(self, registry, following):
        registry.service.upsert(entry("a", "y", "x"))
        await following.news(2)
        registry.service.remove("a")

        assert sorted(await following.news(3)) == [("gone", "a@x"), ("gone", "a@y")]

    async def test_so_does_one_that_a_new_snapshot_lacks(self, registry, following):
        registry.service.replace(entry("b", "z"))

        assert sorted(await following.news(2)) == [("current", "b@z"), ("gone", "a@x")]

    async def test_aliases_are_no_news_but_count(self, registry, following):
        registry.service.set_aliases(prod="a")

        assert await following.news(2) == []
