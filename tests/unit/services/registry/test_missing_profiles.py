"""A profile that could not be made is ordered again, less and less often, and its adapter's report says so."""

from __future__ import annotations

import time

import pytest

from hilora.errors import Unavailable
from services.registry.artifact import SamplesSource
from services.registry.maintenance import Maintenance
from tests.builders.archives import SAMPLES, adapter_files
from tests.builders.registry_values import a_draft
from tests.fakes.registry_ports import FakeProfileTexts
from tests.fakes.registry_stack import RegistryStack

WAIT_SECONDS = 100.0
"""Of the stack's policy, which allows three attempts."""


@pytest.fixture
def clock(monkeypatch):
    """Seconds by which the registry believes to be later."""
    later = {"seconds": 0.0}
    real = time.time
    monkeypatch.setattr("services.registry.missing_profiles.time.time", lambda: real() + later["seconds"])
    return later


@pytest.fixture
def source():
    return FakeProfileTexts(SamplesSource.CARD, ())


@pytest.fixture
async def stack(tmp_path, source, clock):
    """With an adapter whose first profile has just failed."""
    stack = RegistryStack(tmp_path, profile_texts=[source])
    files = adapter_files()
    del files[SAMPLES]
    async with stack.client() as client:
        sent = [("files", item) for item in files.items()]
        assert (await client.post("/v1/adapters", data={"name": "a"}, files=sent)).status_code == 202
    await stack.work()
    return stack


async def look(stack):
    """A look, and what it orders done."""
    due = await stack.missing_profiles.look()
    await stack.work()
    return due


async def finding(stack):
    async with stack.client() as client:
        report = (await client.get("/v1/adapters/a")).json()["report"]
    return next((item for item in report["findings"] if item["code"] == "profile_failed"), None)


class TestLook:
    async def test_the_wait_doubles_and_after_the_last_attempt_nothing_is_ordered(self, stack, clock):
        assert await look(stack) == []
        clock["seconds"] += WAIT_SECONDS + 1
        assert await look(stack) == ["a"]
        clock["seconds"] += WAIT_SECONDS + 1
        assert await look(stack) == []
        clock["seconds"] += WAIT_SECONDS
        assert await look(stack) == ["a"]
        clock["seconds"] += 1e6
        assert await look(stack) == []

    async def test_one_that_can_be_made_by_now_is(self, stack, source, clock):
        source.answers = [("sort b a", "sort d c")]
        clock["seconds"] += WAIT_SECONDS + 1
        await look(stack)

        assert (await stack.catalog.entry("a")).num_samples == 2
        assert await finding(stack) is None
        assert await look(stack) == []

    async def test_one_that_was_given_up_because_a_source_stayed_away_counts_as_well(self, stack, source, clock):
        source.answers = [("text",)]
        clock["seconds"] += WAIT_SECONDS + 1
        await stack.missing_profiles.look()
        await stack.ingestion.give_up(
            stack.queue.job_ids.popleft(), Unavailable("The worker is away.", code="worker_lost")
        )

        assert "2 times, the last with worker_lost" in (await finding(stack))["message"]
        clock["seconds"] += 2 * WAIT_SECONDS + 1
        assert await look(stack) == ["a"]
        assert (await stack.catalog.entry("a")).num_samples == 1

    async def test_an_order_that_a_crash_prevented_is_made_up_for(self, stack, source, clock):
        source.answers = [("text",)]
        manifest = stack.artifacts.write(a_draft(seed=5))
        await stack.catalog.publish(manifest, adapter_name="b", job_id="0" * 32, is_replacement=False)
        assert await look(stack) == []
        clock["seconds"] += 61.0

        assert await look(stack) == ["b"]
        assert (await stack.catalog.entry("b")).num_samples == 1

    async def test_without_sources_or_for_retired_names_nothing_is_ordered(self, stack, clock):
        clock["seconds"] += WAIT_SECONDS + 1
        await stack.catalog.retire("a")
        assert await look(stack) == []
        assert await RegistryStack(stack.data_dir).missing_profiles.look() == []

    async def test_it_is_part_of_every_round_of_maintenance(self, stack, clock):
        clock["seconds"] += WAIT_SECONDS + 1
        maintenance = Maintenance(
            catalog=stack.catalog,
            collector=stack.collector,
            profiles=stack.profiles,
            missing_profiles=stack.missing_profiles,
            interval_seconds=60,
        )
        await maintenance.round()
        assert len(stack.queue.job_ids) == 1


class TestReport:
    async def test_it_says_how_often_and_why(self, stack, clock):
        first = await finding(stack)
        clock["seconds"] += WAIT_SECONDS + 1
        await look(stack)
        second = await finding(stack)

        assert (first["severity"], first["place"]) == ("warning", "samples")
        assert "no_profile_texts" in first["message"]
        assert "1 times" in first["message"]
        assert "2 times" in second["message"]

    async def test_a_refused_order_of_one_source_counts_for_nothing(self, stack):
        before = await finding(stack)
        async with stack.client() as client:
            assert (await client.post("/v1/adapters/a/profile", json={"source": "card"})).status_code == 202
        await stack.work()
        assert await finding(stack) == before
