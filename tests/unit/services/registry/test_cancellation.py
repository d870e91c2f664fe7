"""Ingests that are called off, joined, or followed."""

from __future__ import annotations

import asyncio

import pytest

from hilora.errors import Conflict, RequestAborted
from services.registry.job import IngestState
from services.registry.running_job import RunningJob
from tests.builders.archives import adapter_files, weights_bytes
from tests.builders.registry_values import a_job
from tests.fakes.registry_ports import InMemoryJobStore
from tests.fakes.registry_stack import RegistryStack

KEY = {"Idempotency-Key": "k1"}


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def upload(client, name="sorter", *, headers=None, form=None, **changes):
    files = [("files", item) for item in adapter_files(**changes).items()]
    return await client.post("/v1/adapters", data={"name": name, **(form or {})}, files=files, headers=headers)


async def accepted(stack, **changes):
    async with stack.client() as client:
        answer = await upload(client, **changes)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


class TestWaiting:
    async def test_it_is_over_at_once_and_nothing_stays(self, stack):
        job_id = await accepted(stack)
        async with stack.client() as client:
            answer = await client.delete(f"/v1/jobs/{job_id}")
            again = await client.delete(f"/v1/jobs/{job_id}")

        assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "job_finished")
        assert stack.stored() == []
        await stack.work()
        assert (await stack.catalog.snapshot()).entries == {}

    async def test_a_restart_does_not_bring_it_back(self, stack):
        job_id = await accepted(stack)
        await stack.cancellation.cancel(job_id)

        await stack.recovery.resume()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.CANCELLED

    async def test_an_unknown_job(self, stack):
        async with stack.client() as client:
            answer = await client.delete("/v1/jobs/nobody")

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_job")


class TestRunning:
    @pytest.mark.parametrize(
        ("part", "method"),
        [("encoder", "encode"), ("artifacts", "write"), ("profiles", "write"), ("base", "modules")],
    )
    async def test_it_stops_at_the_next_safe_point(self, stack, monkeypatch, part, method):
        job_id = await accepted(stack)
        loop = asyncio.get_running_loop()
        target = getattr(stack, part)
        original = getattr(target, method)
        answers = []

        def called_off_meanwhile(*args, **kwargs):
            if not answers:
                cancelling = asyncio.run_coroutine_threadsafe(stack.cancellation.cancel(job_id), loop)
                answers.append(cancelling.result(5))
            return original(*args, **kwargs)

        monkeypatch.setattr(target, method, called_off_meanwhile)
        stack.queue.job_ids.clear()
        await stack.ingestion.run(job_id)

        assert not answers[0].state.is_terminal
        assert (await stack.jobs.get(job_id)).state is IngestState.CANCELLED
        assert (await stack.catalog.snapshot()).entries == {}
        assert stack.staging.accepted() == []
        assert [event.action for event in stack.audit.page(before=None, limit=1).events] == ["cancel_ingest"]

    async def test_samples_that_are_called_off_change_nothing(self, stack, monkeypatch):
        await stack.publish()
        before = await stack.catalog.entry("a")
        job = await stack.intake.submit_samples("a", ["one", "two"])
        original = stack.jobs.is_cancel_requested

        async def called_off_by_now(job_id):
            await stack.jobs.request_cancel(job_id)
            return await original(job_id)

        monkeypatch.setattr(stack.jobs, "is_cancel_requested", called_off_by_now)
        await stack.work()

        assert (await stack.jobs.get(job.job_id)).state is IngestState.CANCELLED
        assert await stack.catalog.entry("a") == before
        assert stack.staging.accepted() == []

    async def test_a_process_that_died_before_it_noticed(self, stack):
        job_id = await accepted(stack)
        await stack.jobs.claim(job_id)
        assert not (await stack.cancellation.cancel(job_id)).state.is_terminal
        await stack.jobs.expire(job_id)

        await stack.recovery.resume()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.CANCELLED

    async def test_what_is_ready_cannot_be_called_off(self, stack):
        job_id = await accepted(stack)
        await stack.work()

        with pytest.raises(Conflict):
            await stack.cancellation.cancel(job_id)


class TestProgress:
    async def test_many_reports_are_few_writes(self):
        jobs = InMemoryJobStore()
        running = RunningJob(a_job(), jobs)
        await running.move(IngestState.FETCHING, "")
        writes = []
        original = jobs.put

        async def counted(job):
            writes.append(job)
            await original(job)

        jobs.put = counted
        for number in range(1000):
            running.report(number / 1000, f"{number} bytes")
        await running.flush()
        await running.flush()

        assert [job.detail for job in writes] == ["999 bytes"]
        assert 0.05 < writes[0].progress < 0.2

    async def test_a_late_report_does_not_touch_the_next_state(self):
        jobs = InMemoryJobStore()
        running = RunningJob(a_job(), jobs)
        await running.move(IngestState.FETCHING, "")
        running.report(0.9, "late")
        await running.move(IngestState.VALIDATING, "checking")

        await running.flush()

        assert (await jobs.get(running.job.job_id)).detail == "checking"

    async def test_threads_of_an_abandoned_job_stop_at_their_next_report(self):
        running = RunningJob(a_job(), InMemoryJobStore())
        running.abandon()

        with pytest.raises(RequestAborted):
            running.report(0.5, "still here")


class TestJoining:
    async def test_equal_submissions_are_one_job(self, stack):
        async with stack.client() as client:
            answers = [await upload(client) for _ in range(3)]
            job_ids = {answer.json()["job_id"] for answer in answers}

        assert [answer.status_code for answer in answers] == [202] * 3
        assert len(job_ids) == len(stack.queue.job_ids) == len(stack.staging.accepted()) == 1

    async def test_submissions_that_differ_in_anything_are_not(self, stack):
        async with stack.client() as client:
            answers = [
                await upload(client),
                await upload(client, "other"),
                await upload(client, form={"replace": "true"}),
                await upload(client, form={"squeeze": '{"rank": 1}'}),
                await upload(client, weights=weights_bytes(seed=7)),
            ]

        assert len({answer.json()["job_id"] for answer in answers}) == 5

    async def test_a_reference_that_is_squeezed_is_another_job(self, stack):
        body = {"name": "a", "source": {"hub": "owner/name"}, "samples": ["t"]}
        async with stack.client() as client:
            answers = [
                await client.post("/v1/adapters", json=body),
                await client.post("/v1/adapters", json=body),
                await client.post("/v1/adapters", json={**body, "squeeze": {"energy": 0.9}}),
                await client.post("/v1/adapters", json={**body, "squeeze": {"energy": 0.8}}),
            ]

        assert len({answer.json()["job_id"] for answer in answers}) == 3

    async def test_equal_samples_are_one_job_and_others_another(self, stack):
        await stack.publish()
        async with stack.client() as client:
            answers = [
                await client.post("/v1/adapters/a/samples", json={"samples": texts})
                for texts in (["one", "two"], ["one", "two"], ["one", "three"])
            ]

        assert [answer.status_code for answer in answers] == [202] * 3
        assert len({answer.json()["job_id"] for answer in answers}) == len(stack.queue.job_ids) == 2

    async def test_nobody_joins_a_job_that_is_called_off_or_over(self, stack):
        first = await accepted(stack)
        lease = await stack.jobs.claim(first)
        await stack.cancellation.cancel(first)
        second = await accepted(stack)
        await lease.release()
        await stack.work()
        third = await accepted(stack)

        assert len({first, second, third}) == 3


class TestIdempotencyKeys:
    async def test_the_same_again_is_the_same_job_even_when_it_is_over(self, stack):
        async with stack.client() as client:
            first = await upload(client, headers=KEY)
            await stack.work()
            second = await upload(client, headers=KEY)

        assert second.json()["job_id"] == first.json()["job_id"]
        assert second.json()["state"] == "READY"
        assert list((stack.data_dir / "incoming").iterdir()) == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "other"},
            {"form": {"replace": "true"}},
            {"form": {"squeeze": '{"rank": 1}'}},
            {"weights": b"x"},
        ],
    )
    async def test_another_body_is_a_conflict(self, stack, changes):
        async with stack.client() as client:
            await upload(client, headers=KEY)
            answer = await upload(client, headers=KEY, **changes)

        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")

    async def test_a_refused_body_does_not_use_the_key_up(self, stack):
        async with stack.client() as client:
            refused = await upload(client, headers=KEY, weights=b"x")
            answer = await upload(client, headers=KEY)

        assert (refused.status_code, answer.status_code) == (422, 202)

    async def test_references_too(self, stack):
        body = {"name": "a", "source": {"hub": "owner/name"}, "samples": ["t"]}
        async with stack.client() as client:
            first = await client.post("/v1/adapters", json=body, headers=KEY)
            second = await client.post("/v1/adapters", json=body, headers=KEY)
            others = [
                await client.post("/v1/adapters", json={**body, **change}, headers=KEY)
                for change in ({"name": "b"}, {"squeeze": {"rank": 2}})
            ]

        assert first.json()["job_id"] == second.json()["job_id"]
        assert [other.status_code for other in others] == [409] * 2
