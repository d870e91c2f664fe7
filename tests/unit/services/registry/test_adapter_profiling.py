"""Adapters that come without sample texts: published at once, routed to as soon as a source has texts for them."""

from __future__ import annotations

import contextlib

import pytest

from hilora.errors import Unavailable
from services.registry.artifact import SamplesSource
from services.registry.job import IngestState
from tests.builders.archives import CARD, SAMPLES, adapter_files, weights_bytes
from tests.fakes.registry_ports import FakeProfileTexts
from tests.fakes.registry_stack import RegistryStack

DATASET, PORTRAIT, CARD_SOURCE = SamplesSource.DATASET, SamplesSource.SELF_PORTRAIT, SamplesSource.CARD


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def killed(_):
    raise Killed


def away():
    return Unavailable("The worker is away.", code="worker_lost")


def stack_of(tmp_path, *sources, **options):
    return RegistryStack(tmp_path, profile_texts=sources, **options)


async def upload(stack, *, name="a", card=b"It sorts words of all kinds.", seed=0):
    """Without samples; the ingest is done, profiling not begun. The job's id."""
    files = adapter_files(weights=weights_bytes(seed=seed)) | {CARD: card}
    del files[SAMPLES]
    async with stack.client() as client:
        sent = [("files", item) for item in files.items()]
        answer = await client.post("/v1/adapters", data={"name": name, "replace": "true"}, files=sent)
    assert answer.status_code == 202, answer.text
    job_id = stack.queue.job_ids.popleft()
    await stack.ingestion.run(job_id)
    return job_id


async def order(stack, body=None, name="a"):
    async with stack.client() as client:
        return await client.post(f"/v1/adapters/{name}/profile", json=body)


async def profiled(stack, name="a"):
    entry = await stack.catalog.entry(name)
    return entry.samples_source, stack.profiles.texts(entry.revision, entry.profile_id) if entry.profile_id else ()


class TestIngestWithoutSamples:
    async def test_it_can_be_named_at_once(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, away()))

        job_id = await upload(stack)

        job = await stack.jobs.get(job_id)
        entry = await stack.catalog.entry("a")
        assert job.state is IngestState.READY
        assert (entry.num_samples, entry.samples_source) == (0, "")
        assert [finding.code for finding in job.report.findings if finding.place == "samples"] == ["no_samples"]

    async def test_its_profile_comes_from_the_first_source_that_has_texts(self, tmp_path):
        portrait = FakeProfileTexts(PORTRAIT, ("sort b a", "sort d c"))
        stack = stack_of(tmp_path, FakeProfileTexts(DATASET, ()), portrait, FakeProfileTexts(CARD_SOURCE, ("card",)))

        await upload(stack)
        await stack.work()

        entry = await stack.catalog.entry("a")
        assert await profiled(stack) == ("self_portrait", ("sort b a", "sort d c"))
        [subject] = portrait.subjects
        assert (subject.adapter_id, subject.lora_rank) == (entry.adapter_id, entry.lora_rank)
        assert subject.is_served
        assert subject.card == "It sorts words of all kinds."

    async def test_a_source_that_is_away_is_waited_for_with_the_next_best(self, tmp_path):
        portrait = FakeProfileTexts(PORTRAIT, away(), away(), ("sort b a",))
        stack = stack_of(tmp_path, portrait, FakeProfileTexts(CARD_SOURCE, ("card",)))
        await upload(stack)
        job_id = stack.queue.job_ids.popleft()

        with pytest.raises(Unavailable):
            await stack.ingestion.run(job_id)
        assert await profiled(stack) == ("card", ("card",))
        assert (await stack.jobs.get(job_id)).state is IngestState.PENDING
        with pytest.raises(Unavailable):
            await stack.ingestion.run(job_id)
        await stack.ingestion.run(job_id)

        assert await profiled(stack) == ("self_portrait", ("sort b a",))
        assert (await stack.jobs.get(job_id)).state is IngestState.READY

    async def test_an_adapter_survives_the_failure_of_its_profile(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, away()))
        await upload(stack)
        job_id = stack.queue.job_ids.popleft()
        with contextlib.suppress(Unavailable):
            await stack.ingestion.run(job_id)

        await stack.ingestion.give_up(job_id, away())

        assert (await stack.jobs.get(job_id)).state is IngestState.FAILED
        assert (await stack.catalog.entry("a")).adapter_name == "a"

    async def test_without_any_texts_the_profiling_fails_and_says_so(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(CARD_SOURCE, ()))
        await upload(stack)
        job_id = stack.queue.job_ids[0]

        await stack.work()

        assert (await stack.jobs.get(job_id)).error.code == "no_profile_texts"
        assert (await stack.catalog.entry("a")).num_samples == 0

    async def test_without_sources_nothing_is_ordered(self, tmp_path):
        stack = stack_of(tmp_path)
        await upload(stack)
        assert not stack.queue.job_ids

    async def test_an_order_that_is_lost_is_made_again_with_the_ingest(self, tmp_path, monkeypatch):
        stack = stack_of(tmp_path, FakeProfileTexts(CARD_SOURCE, ("card",)))
        with monkeypatch.context() as patch:
            patch.setattr(stack.staging, "discard", killed)
            with pytest.raises(Killed):
                await upload(stack)
        stack.queue.job_ids.clear()
        stack.jobs._leases.clear()

        await stack.recovery.resume()
        await stack.work()

        assert await profiled(stack) == ("card", ("card",))


class TestGivenTexts:
    async def test_texts_that_are_sent_take_the_place_of_a_portrait(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, ("dreamt up",)))
        await upload(stack)
        await stack.work()

        async with stack.client() as client:
            await client.post("/v1/adapters/a/samples", json={"samples": ["sort b a"]})
        await stack.work()

        assert await profiled(stack) == ("upload", ("sort b a",))

    async def test_they_stay_when_a_profile_is_ordered_without_a_source(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, ("dreamt up",)))
        await stack.publish()
        before = await profiled(stack)

        answer = await order(stack)
        await stack.work()

        assert await profiled(stack) == before
        assert (await stack.jobs.get(answer.json()["job_id"])).state is IngestState.READY

    async def test_they_go_where_somebody_names_another_source(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, ("dreamt up",)))
        await stack.publish()

        await order(stack, {"source": "self_portrait"})
        await stack.work()

        assert await profiled(stack) == ("self_portrait", ("dreamt up",))


class TestOrders:
    async def test_an_equal_order_joins_the_unfinished_one(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(CARD_SOURCE, ("card",)))
        await stack.publish()

        first, second = await order(stack), await order(stack)
        other = await order(stack, {"source": "card"})

        assert first.json()["job_id"] == second.json()["job_id"] != other.json()["job_id"]

    async def test_a_source_without_means_is_refused(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(CARD_SOURCE, ("card",)))
        await stack.publish()

        answer = await order(stack, {"source": "self_portrait"})

        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "profile_source_off"
        assert "HILORA_REGISTRY_WORKER_ADDRESS" in answer.text

    async def test_unknown_names_and_sources_are_refused(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(CARD_SOURCE, ("card",)))
        await stack.catalog.reconcile()
        assert (await order(stack, name="nobody")).status_code == 404
        assert (await order(stack, {"source": "stars"})).status_code in {400, 422}
        assert not stack.queue.job_ids


class TestQuarantine:
    async def test_no_worker_runs_it_before_it_is_approved(self, tmp_path):
        portrait = FakeProfileTexts(PORTRAIT, ("sort b a",))
        stack = stack_of(tmp_path, portrait, FakeProfileTexts(CARD_SOURCE, ("card",)), holds_new_versions=True)

        await upload(stack)
        await stack.work()

        [version] = (await stack.lifecycle.registration("a")).versions
        [profile_id] = version.profile_ids.values()
        assert portrait.subjects == []
        assert stack.profiles.record(version.revision, profile_id).samples_source == "card"

    async def test_approval_orders_the_profile_that_is_missing(self, tmp_path):
        stack = stack_of(tmp_path, FakeProfileTexts(PORTRAIT, ("sort b a",)), holds_new_versions=True)
        await upload(stack)
        await stack.work()

        await stack.lifecycle.review("a", is_approval=True, reviewer="me", reason="")
        await stack.work()

        assert await profiled(stack) == ("self_portrait", ("sort b a",))
