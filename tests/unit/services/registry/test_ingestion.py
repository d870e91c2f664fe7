"""Ingests that are interrupted anywhere, repeated, or run into trouble."""

from __future__ import annotations

import asyncio
import errno

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.errors import HiloraError, RegistryUnavailable
from services.registry.job import IngestState
from tests.builders.adapters import peft_tensors, random_adapter
from tests.builders.archives import adapter_files, weights_bytes
from tests.fakes.registry_stack import RegistryStack


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.fixture
def stack(tmp_path):
    return RegistryStack(tmp_path)


async def accepted(stack, name="sorter", **changes):
    async with stack.client() as client:
        files = [("files", item) for item in adapter_files(**changes).items()]
        answer = await client.post("/v1/adapters", data={"name": name}, files=files)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def kill_once(monkeypatch, target, method, *, after=False):
    """Let the process 'die' in one call of a method, before or after it did its work."""
    original = getattr(target, method)
    calls = []

    async def dying_async(*args, **kwargs):
        result = None if not after and not calls else await original(*args, **kwargs)
        if not calls:
            calls.append(1)
            raise Killed
        return result

    def dying(*args, **kwargs):
        result = None if not after and not calls else original(*args, **kwargs)
        if not calls:
            calls.append(1)
            raise Killed
        return result

    monkeypatch.setattr(target, method, dying_async if asyncio.iscoroutinefunction(original) else dying)


class TestKilled:
    @pytest.mark.parametrize(
        ("part", "method", "after"),
        [
            ("jobs", "put", False),
            ("jobs", "put", True),
            ("encoder", "encode", False),
            ("artifacts", "write", False),
            ("artifacts", "write", True),
            ("registrations", "put", False),
            ("registrations", "put", True),
            ("index", "apply", True),
            ("staging", "discard", False),
            ("staging", "discard", True),
        ],
    )
    async def test_a_killed_ingest_is_finished_by_the_next_process(self, stack, monkeypatch, part, method, after):
        job_id = await accepted(stack)
        with monkeypatch.context() as patch:
            kill_once(patch, getattr(stack, part), method, after=after)
            with pytest.raises(Killed):
                await stack.work()
        await stack.jobs.expire(job_id)

        await stack.recovery.resume()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.READY
        assert list((await stack.catalog.snapshot()).entries) == ["sorter"]
        assert stack.staging.accepted() == []

    async def test_nothing_half_registered_is_visible(self, stack, monkeypatch):
        await accepted(stack)
        with monkeypatch.context() as patch:
            kill_once(patch, stack.registrations, "put", after=True)
            with pytest.raises(Killed):
                await stack.work()

        assert (await stack.catalog.snapshot()).entries == {}

    async def test_it_is_finished_also_if_redis_lost_everything(self, stack, monkeypatch):
        job_id = await accepted(stack)
        with monkeypatch.context() as patch:
            kill_once(patch, stack.artifacts, "write")
            with pytest.raises(Killed):
                await stack.work()
        stack.jobs._jobs.clear()
        stack.jobs._leases.clear()
        await stack.index.lose_everything()

        await stack.recovery.resume()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.READY

    async def test_lost_files_are_said_to_be_lost(self, stack):
        job_id = await accepted(stack)
        stack.staging.discard(job_id)

        await stack.recovery.resume()

        job = await stack.jobs.get(job_id)
        assert (job.state, job.error.code) == (IngestState.FAILED, "ingest_interrupted")
        assert job.error.remedy


class TestRepeated:
    async def test_a_finished_job_is_not_done_again(self, stack):
        job_id = await accepted(stack)
        await stack.work()
        before = list(stack.jobs.history)

        await stack.ingestion.run(job_id)

        assert stack.jobs.history == before

    async def test_a_job_is_not_done_twice_at_once(self, stack):
        job_id = await accepted(stack)
        lease = await stack.jobs.claim(job_id)

        await stack.ingestion.run(job_id)
        assert (await stack.jobs.get(job_id)).state is IngestState.PENDING
        await lease.release()

    async def test_a_lost_lease_stops_the_work(self, stack, monkeypatch):
        job_id = await accepted(stack)

        async def slowly(*_):
            await stack.jobs.expire(job_id)
            await asyncio.sleep(5)

        monkeypatch.setattr(stack.ingestion, "_ingest", slowly)

        with pytest.raises(RegistryUnavailable, match="Another process"):
            await stack.ingestion.run(job_id)

    async def test_the_same_adapter_under_two_names_is_stored_once(self, stack):
        await accepted(stack, "one")
        await accepted(stack, "two")
        await stack.work()

        entries = (await stack.catalog.snapshot()).entries
        assert entries["one"].revision == entries["two"].revision
        assert len(list((stack.data_dir / "artifacts").iterdir())) == 1

    async def test_another_encoder_makes_another_profile_of_the_same_version(self, stack):
        await accepted(stack)
        await stack.work()
        first = await stack.catalog.entry("sorter")
        stack.encoder._encoder_id = "hash:2"
        await accepted(stack)
        await stack.work()

        (version,) = stack.registrations.get("sorter").versions
        assert version.revision == first.revision
        assert list(version.profile_ids) == ["hash:1", "hash:2"]
        assert (await stack.catalog.entry("sorter")).encoder_id == "hash:1", "the others are still profiled by it"


class TestTrouble:
    async def test_what_may_pass_is_tried_again(self, stack):
        job_id = await accepted(stack)
        stack.index.failing_commits = 1

        with pytest.raises(RegistryUnavailable):
            await stack.ingestion.run(job_id)
        assert (await stack.jobs.get(job_id)).state is IngestState.PENDING

        await stack.ingestion.run(job_id)
        assert (await stack.jobs.get(job_id)).state is IngestState.READY

    async def test_after_the_last_attempt_the_job_fails(self, stack):
        job_id = await accepted(stack)

        await stack.ingestion.give_up(job_id, RegistryUnavailable("still away", code="redis_unavailable"))

        job = await stack.jobs.get(job_id)
        assert (job.state, job.error.code) == (IngestState.FAILED, "redis_unavailable")
        assert stack.staging.accepted() == []

    async def test_a_full_disk_fails_the_job_and_not_the_process(self, stack, monkeypatch):
        job_id = await accepted(stack)

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(stack.artifacts, "write", full)
        await stack.work()

        job = await stack.jobs.get(job_id)
        assert (job.state, job.error.code) == (IngestState.FAILED, "ingest_failed")
        assert (await stack.catalog.snapshot()).entries == {}

    async def test_factors_that_overflow_once_scaled_are_refused(self, stack):
        tensors = {name: tensor * 1e20 for name, tensor in peft_tensors(random_adapter()).items()}
        job_id = await accepted(stack, weights=weights_bytes(tensors=tensors))
        await stack.work()

        assert (await stack.jobs.get(job_id)).error.code == "non_finite_weights"
        assert stack.stored() == []

    async def test_an_error_keeps_its_remedy(self, stack):
        job_id = await accepted(stack)
        await stack.ingestion.give_up(job_id, HiloraError("x", code="c", remedy="do this", place="there"))

        assert (await stack.jobs.get(job_id)).error.remedy == "do this"


class TestRecoveryWhileRunning:
    async def test_a_job_whose_process_died_is_queued_again(self, stack, monkeypatch):
        job_id = await accepted(stack)
        with monkeypatch.context() as patch:
            kill_once(patch, stack.encoder, "encode")
            with pytest.raises(Killed):
                await stack.work()

        # Its process is taken for alive as long as its lease holds.
        await stack.jobs.claim(job_id)
        await stack.recovery.look()
        assert not stack.queue.job_ids

        await stack.jobs.expire(job_id)
        await stack.recovery.look()
        assert list(stack.queue.job_ids) == [job_id]
        assert (await stack.jobs.get(job_id)).state is IngestState.PENDING

    async def test_a_waiting_job_is_left_alone(self, stack):
        await accepted(stack)

        await stack.recovery.look()

        assert len(stack.queue.job_ids) == 1

    async def test_a_lost_message_is_replaced_once_its_time_is_up(self, stack, monkeypatch):
        job_id = await accepted(stack)
        stack.queue.job_ids.clear()
        await stack.recovery.look()
        assert not stack.queue.job_ids

        monkeypatch.setattr("services.registry.recovery.time.time", lambda: 4e9)
        await stack.recovery.look()
        assert list(stack.queue.job_ids) == [job_id]

    async def test_a_job_that_redis_forgot_is_done_all_the_same(self, stack, monkeypatch):
        job_id = await accepted(stack)
        stack.queue.job_ids.clear()
        stack.jobs._jobs.clear()
        await stack.recovery.look()
        assert await stack.jobs.get(job_id) is None, "the intake itself may be about to note it"

        with monkeypatch.context() as later:
            later.setattr("services.registry.recovery.time.time", lambda: 4e9)
            await stack.recovery.look()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.READY

    async def test_an_upload_is_accepted_while_the_broker_is_away(self, stack):
        stack.queue.is_away = True
        job_id = await accepted(stack)
        stack.queue.is_away = False

        await stack.recovery.resume()
        await stack.work()

        assert (await stack.jobs.get(job_id)).state is IngestState.READY


class TestComponents:
    async def test_both_bases_are_stored_and_equal_the_adapter(self, stack):
        import safetensors.torch

        await accepted(stack)
        await stack.work()
        entry = await stack.catalog.entry("sorter")

        adapter = random_adapter()
        config_scaling = 8 / 4
        for basis in RocBasis:
            with await stack.catalog.open_components(entry.adapter_id, basis) as stream:
                tensors = safetensors.torch.load(stream.read())
            for path, factors in adapter.modules.items():
                rebuilt = tensors[f"{path}.roc_b"].T @ tensors[f"{path}.roc_a"]
                expected = config_scaling * factors.lora_b @ factors.lora_a
                torch.testing.assert_close(rebuilt, expected, atol=1e-5, rtol=1e-5)
