"""Publishing: generations that never go back, and agreement between disk and index after any crash."""

from __future__ import annotations

import pytest

from hilora.adapter import RocBasis
from hilora.errors import AdapterAlreadyRegistered, RegistryUnavailable, UnknownAdapter
from services.registry.catalog_entry import CatalogChange, CatalogResync
from services.registry.registration import RegistrationState
from tests.builders.registry_values import a_draft, a_profile
from tests.fakes.registry_stack import RegistryStack


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path)
    await stack.catalog.reconcile()
    return stack


async def publish(stack, name, *, seed=0, is_replacement=False):
    manifest = stack.artifacts.write(a_draft(seed=seed))
    profile = stack.profiles.write(manifest.revision, a_profile(seed=seed))
    published = await stack.catalog.publish(
        manifest, adapter_name=name, job_id="0" * 32, is_replacement=is_replacement, profile=profile
    )
    return published.entry


class TestGenerations:
    async def test_a_fresh_catalogue_has_one(self, stack):
        assert (await stack.catalog.snapshot()).catalog_generation == 1

    async def test_every_publication_and_retirement_counts_one_up(self, stack):
        first = await publish(stack, "a")
        second = await publish(stack, "b", seed=1)
        gone = await stack.catalog.retire("a")

        assert (first.catalog_generation, second.catalog_generation, gone) == (2, 3, 4)

    async def test_publishing_the_same_again_changes_nothing(self, stack):
        first = await publish(stack, "a")

        assert await publish(stack, "a") == first
        assert (await stack.catalog.snapshot()).catalog_generation == 2

    async def test_they_go_on_after_the_index_lost_everything(self, stack):
        await publish(stack, "a")
        await publish(stack, "b", seed=1)
        before = await stack.catalog.snapshot()
        await stack.index.lose_everything()

        after = await stack.catalog.snapshot()

        assert dict(after.entries) == dict(before.entries)
        assert after.catalog_generation > before.catalog_generation

    async def test_a_retirement_as_last_change_is_not_forgotten(self, stack):
        await publish(stack, "a")
        gone = await stack.catalog.retire("a")
        await stack.index.lose_everything()

        after = await stack.catalog.snapshot()

        assert after.entries == {}
        assert after.catalog_generation > gone

    async def test_a_publication_into_an_emptied_index_rebuilds_it_first(self, stack):
        await publish(stack, "a")
        await stack.index.lose_everything()

        await publish(stack, "b", seed=1)

        assert list((await stack.catalog.snapshot()).entries) == ["a", "b"]


class TestConflicts:
    async def test_other_content_needs_a_replacement(self, stack):
        await publish(stack, "a")

        with pytest.raises(AdapterAlreadyRegistered):
            await publish(stack, "a", seed=1)
        replaced = await publish(stack, "a", seed=1, is_replacement=True)
        assert (await stack.catalog.entry("a")) == replaced

    async def test_a_lost_lock_is_taken_again(self, stack, monkeypatch):
        original = stack.index.apply
        stolen = []

        async def steal_once(transaction, change):
            if not stolen:
                stolen.append(1)
                stack.index.holder = None
            await original(transaction, change)

        monkeypatch.setattr(stack.index, "apply", steal_once)

        assert (await publish(stack, "a")).catalog_generation == 2
        assert list((await stack.catalog.snapshot()).entries) == ["a"]

    async def test_nobody_waits_for_ever(self, stack, monkeypatch):
        async def steal(transaction, change):
            stack.index.holder = None
            await type(stack.index).apply(stack.index, transaction, change)

        monkeypatch.setattr(stack.index, "apply", steal)

        with pytest.raises(RegistryUnavailable):
            await publish(stack, "a")

    async def test_retiring_what_is_not_there(self, stack):
        with pytest.raises(UnknownAdapter):
            await stack.catalog.retire("nobody")


class TestReconcile:
    async def test_agreement_changes_nothing(self, stack):
        await publish(stack, "a")
        before = await stack.catalog.snapshot()

        await stack.catalog.reconcile()

        assert await stack.catalog.snapshot() == before

    async def test_a_pointer_that_was_never_published_is(self, stack):
        stack.index.failing_commits = 1
        with pytest.raises(RegistryUnavailable):
            await publish(stack, "a")
        assert (await stack.catalog.snapshot()).entries == {}

        await stack.catalog.reconcile()

        snapshot = await stack.catalog.snapshot()
        assert list(snapshot.entries) == ["a"]
        assert snapshot.catalog_generation > stack.registrations.get("a").catalog_generation

    async def test_a_retirement_that_was_never_published_is(self, stack):
        await publish(stack, "a")
        stack.index.failing_commits = 1
        with pytest.raises(RegistryUnavailable):
            await stack.catalog.retire("a")
        assert list((await stack.catalog.snapshot()).entries) == ["a"]

        await stack.catalog.reconcile()

        assert (await stack.catalog.snapshot()).entries == {}

    async def test_a_failed_retirement_can_be_repeated(self, stack):
        await publish(stack, "a")
        stack.index.failing_commits = 1
        with pytest.raises(RegistryUnavailable):
            await stack.catalog.retire("a")

        await stack.catalog.retire("a")

        assert (await stack.catalog.snapshot()).entries == {}
        assert stack.registrations.get("a").state is RegistrationState.RETIRED

    async def test_one_damaged_version_does_not_hide_the_others(self, stack):
        damaged = await publish(stack, "a")
        await publish(stack, "b", seed=1)
        (stack.data_dir / "artifacts" / damaged.revision / "manifest.json").write_text("{")
        await stack.index.lose_everything()

        assert list((await stack.catalog.snapshot()).entries) == ["b"]

    async def test_an_unreadable_pointer_does_not_hide_the_others(self, stack):
        await publish(stack, "a")
        await publish(stack, "b", seed=1)
        (stack.data_dir / "adapters" / "a.json").write_text("{")
        await stack.index.lose_everything()

        assert list((await stack.catalog.snapshot()).entries) == ["b"]


class TestFollow:
    async def test_a_follower_is_told_to_start_over_after_a_rebuild(self, stack):
        await publish(stack, "a")
        await stack.index.lose_everything()

        news = [item async for item in stack.catalog.follow(2, heartbeat_seconds=0.01)]

        assert news == [CatalogResync(catalog_generation=(await stack.catalog.snapshot()).catalog_generation)]
        assert news[0].catalog_generation > 2

    async def test_changes_arrive_in_order(self, stack):
        await publish(stack, "a")
        await publish(stack, "b", seed=1)
        await stack.catalog.retire("a")
        news = stack.catalog.follow(1, heartbeat_seconds=0.01)

        changes = [await anext(news) for _ in range(3)]

        assert all(isinstance(change, CatalogChange) for change in changes)
        assert [(change.adapter_name, change.entry is None) for change in changes] == [
            ("a", False),
            ("b", False),
            ("a", True),
        ]


class TestComponents:
    async def test_a_replaced_and_a_retired_version_are_still_served(self, stack):
        first = await publish(stack, "a")
        second = await publish(stack, "a", seed=1, is_replacement=True)
        await stack.catalog.retire("a")

        for entry in (first, second):
            with await stack.catalog.open_components(entry.adapter_id, RocBasis.SVD) as stream:
                assert len(stream.read()) == entry.component_bytes

    @pytest.mark.parametrize("adapter_id", ["a", "a@", "a@000000000000", "@", "a@../../etc", "a@*", "../a@b"])
    async def test_an_unknown_version(self, stack, adapter_id):
        await publish(stack, "a")

        with pytest.raises(UnknownAdapter):
            await stack.catalog.open_components(adapter_id, RocBasis.SVD)

    async def test_a_head_of_a_revision_is_not_an_identity(self, stack):
        entry = await publish(stack, "a")

        with pytest.raises(UnknownAdapter):
            await stack.catalog.open_components(f"b@{entry.revision[:5]}", RocBasis.SVD)
