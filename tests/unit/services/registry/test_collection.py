"""Garbage collection: what is needed stays, whatever happens in between."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hilora.adapter import RocBasis
from hilora.errors import UnknownAdapter
from services.registry.collection import CollectionPolicy, Collector
from services.registry.registration import VersionState
from tests.builders.registry_values import a_draft, a_profile
from tests.fakes.registry_stack import RegistryStack

AT_ONCE = CollectionPolicy(keep_versions=2, grace_seconds=0)


@pytest.fixture
async def stack(tmp_path):
    stack = RegistryStack(tmp_path, collection=AT_ONCE)
    await stack.catalog.reconcile()
    return stack


async def publish(stack, name="a", *, seed=0):
    published = await stack.publish(name, seed=seed)
    return published.registration.versions[-1].revision


def age(stack, revision):
    """Let an artifact and its profiles have been written long ago."""
    for folder in (stack.data_dir / "artifacts" / revision, *(stack.data_dir / "profiles" / revision).iterdir()):
        os.utime(folder, (1, 1))


def is_stored(stack, revision):
    try:
        stack.artifacts.open_components(revision, RocBasis.SVD).close()
    except UnknownAdapter:
        return False
    return True


class TestWhatIsKept:
    async def test_the_newest_versions_the_current_and_the_aliased_one(self, stack):
        revisions = [await publish(stack, seed=seed) for seed in range(5)]
        await stack.lifecycle.put_alias("old", "a@2")
        await stack.lifecycle.roll_back("a", selector="1")

        report = await stack.collector.collect()

        assert report.versions == ("a@3",)
        assert [is_stored(stack, revision) for revision in revisions] == [True, True, False, True, True]
        entry = await stack.catalog.entry("a")
        assert [other.version for other in entry.other_versions] == [2, 4, 5]

    async def test_one_that_waits_for_a_decision(self, tmp_path):
        stack = RegistryStack(tmp_path, collection=AT_ONCE, holds_new_versions=True)
        revisions = [await publish(stack, seed=seed) for seed in range(4)]

        await stack.collector.collect()

        assert all(is_stored(stack, revision) for revision in revisions)

    async def test_content_that_another_name_shares(self, stack):
        shared = await publish(stack, "a")
        await publish(stack, "b")
        await stack.catalog.retire("a")

        report = await stack.collector.collect()

        assert report.versions == ("a@1",)
        assert is_stored(stack, shared)

    async def test_nothing_young(self, tmp_path):
        stack = RegistryStack(tmp_path)
        revisions = [await publish(stack, seed=seed) for seed in range(4)]
        await stack.catalog.retire("a")

        report = await stack.collector.collect()

        assert (report.versions, report.artifacts) == ((), ())
        assert all(is_stored(stack, revision) for revision in revisions)

    async def test_the_profile_in_use_but_not_the_one_before(self, stack):
        await publish(stack)
        before = await stack.catalog.entry("a")
        await stack.lifecycle.add_samples("a", ("more",), encoder=stack.encoder, job_id="1" * 32)
        after = await stack.catalog.entry("a")

        report = await stack.collector.collect()

        assert report.profiles == (f"{before.revision}/{before.profile_id}",)
        assert stack.profiles.record(after.revision, after.profile_id)

    async def test_the_files_of_one_that_just_left_its_history_for_plans_that_were_made_before(self, stack):
        revisions = [await publish(stack, seed=seed) for seed in range(3)]
        patient = Collector(
            publisher=stack.publisher,
            registrations=stack.registrations,
            artifacts=stack.artifacts.folders,
            profiles=stack.profiles.folders,
            policy=replace(AT_ONCE, grace_seconds=1.0),
        )
        for revision in revisions:
            age(stack, revision)
        first = stack.registrations.get("a")
        old = tuple(replace(version, created_at=1.0, left_at=1.0) for version in first.versions)
        stack.registrations.put(replace(first, versions=old), replaces=first)

        report = await patient.collect()

        assert (report.versions, report.artifacts) == (("a@1",), ())
        assert is_stored(stack, revisions[0])


class TestWhatGoes:
    async def test_a_retired_name_keeps_its_history_alone(self, stack):
        revision = await publish(stack)
        await stack.catalog.retire("a")

        report = await stack.collector.collect()
        await stack.collector.collect()

        assert report.artifacts == (revision,)
        assert report.freed_bytes > 1000
        (version,) = stack.registrations.get("a").versions
        assert (version.state, version.revision) == (VersionState.COLLECTED, revision)
        assert not [item for item in stack.stored() if revision in item]

    async def test_a_name_whose_versions_are_all_gone_can_be_used_again(self, stack):
        await publish(stack)
        await stack.catalog.retire("a")
        await stack.collector.collect()

        await publish(stack)

        assert (await stack.catalog.entry("a")).version == 2

    async def test_what_an_interrupted_ingest_left(self, stack):
        revision = stack.artifacts.write(a_draft()).revision
        assert (await stack.collector.collect()).artifacts == (revision,)
        assert not is_stored(stack, revision)

    async def test_a_dry_run_says_the_same_and_changes_nothing(self, stack):
        for seed in range(4):
            await publish(stack, seed=seed)
        before = (stack.stored(), await stack.catalog.snapshot(), stack.registrations.all())

        told = await stack.collector.collect(dry_run=True)

        assert (stack.stored(), await stack.catalog.snapshot(), stack.registrations.all()) == before
        assert await stack.collector.collect() == told
        assert len(told.artifacts) == 2

    async def test_over_rest(self, stack):
        for seed in range(3):
            await publish(stack, seed=seed)
        async with stack.client() as client:
            dry = (await client.post("/v1/collections", json={"dry_run": True})).json()
            real = (await client.post("/v1/collections")).json()

        assert (dry["is_dry_run"], real["is_dry_run"]) == (True, False)
        assert dry["versions"] == real["versions"] == ["a@1"]


class TestRaces:
    async def test_what_was_set_aside_can_be_written_again(self, tmp_path):
        stack = RegistryStack(tmp_path, collection=replace(AT_ONCE, grace_seconds=100))
        await stack.catalog.reconcile()
        manifest = stack.artifacts.write(a_draft())
        stack.profiles.write(manifest.revision, a_profile())
        age(stack, manifest.revision)
        await stack.collector.collect()
        assert not is_stored(stack, manifest.revision)
        # Somebody sends the same content again.
        await publish(stack, "b")

        await stack.collector.collect()

        assert is_stored(stack, manifest.revision)
        assert (await stack.catalog.entry("b")).num_samples == 3

    async def test_a_record_that_mentions_what_was_set_aside_gets_it_back(self, tmp_path):
        stack = RegistryStack(tmp_path, collection=replace(AT_ONCE, grace_seconds=100))
        revision = await publish(stack)
        stack.artifacts.folders.set_aside(revision)
        assert not is_stored(stack, revision)

        await stack.collector.collect()

        assert is_stored(stack, revision)

    async def test_content_written_again_counts_as_fresh(self, tmp_path):
        stack = RegistryStack(tmp_path, collection=replace(AT_ONCE, grace_seconds=100))
        revision = await publish(stack)
        (stack.data_dir / "adapters" / "a.json").unlink()
        age(stack, revision)
        stack.artifacts.write(a_draft())
        stack.profiles.write(revision, a_profile())

        report = await stack.collector.collect()

        assert (report.artifacts, report.profiles) == ((), ())

    async def test_who_lost_the_right_to_publish_sets_nothing_aside(self, stack, monkeypatch):
        revision = stack.artifacts.write(a_draft()).revision
        original = stack.artifacts.folders.stored

        def losing():
            stack.index.holder = None
            return original()

        monkeypatch.setattr(stack.artifacts.folders, "stored", losing)

        await stack.collector.collect()

        assert is_stored(stack, revision)
