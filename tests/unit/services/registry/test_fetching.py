"""Bringing files in: what stays, what goes, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest

from hilora.errors import RequestAborted
from services.registry.adapter_files import CONFIG_FILE, SAMPLES_FILE, WEIGHTS_FILE, archive_stem, files_to_fetch
from services.registry.fetching import Fetcher, FetchProgress
from services.registry.infra.assembly import assemble
from services.registry.job import IngestState, SourceKind, pending_job
from services.registry.running_job import RunningJob
from tests.builders.archives import CARD, CONFIG, SAMPLES, WEIGHTS, adapter_files, sharded_weights, weights_bytes
from tests.builders.registry_values import a_request
from tests.fakes.registry_ports import InMemoryJobStore


class ScriptedSource:
    """See `AdapterSource`: writes given files and reports given bytes, held back at every step until it is let go."""

    def __init__(self, files, *, steps=()):
        self.files = files
        self.steps = steps
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.ended = threading.Event()

    def check(self, reference):
        raise NotImplementedError

    def fetch(self, reference, folder, *, on_progress):
        try:
            for done in self.steps:
                on_progress(done, 100 << 20)
                self.arrived.release()
                self.gate.acquire()
            on_progress(100 << 20, 100 << 20)
            for name, data in self.files.items():
                (folder / name).write_bytes(data)
        finally:
            self.ended.set()
        return f"{reference}@exact"


def request_of(*, has_own_samples=False, kind=SourceKind.HUB):
    return dataclasses.replace(a_request(), source_kind=kind, source="o/n", has_own_samples=has_own_samples)


def running_of(request, jobs=None):
    job = pending_job(request, due_at=0).moved(IngestState.FETCHING, detail="fetching")
    return RunningJob(job, jobs or InMemoryJobStore())


def fetcher_of(source):
    return Fetcher(sources={SourceKind.HUB: source}, assemble=assemble)


class TestFetch:
    async def test_an_upload_is_there_already(self, tmp_path):
        request = request_of(kind=SourceKind.UPLOAD)

        assert await fetcher_of(None).fetch(running_of(request), request, tmp_path) == "o/n"

    async def test_samples_of_the_client_stay(self, tmp_path):
        (tmp_path / SAMPLES).write_bytes(b"mine")
        request = request_of(has_own_samples=True)

        for _ in range(2):  # an attempt after a crash finds them again
            exact = await fetcher_of(ScriptedSource(adapter_files())).fetch(running_of(request), request, tmp_path)

            assert exact == "o/n@exact"
            assert (tmp_path / SAMPLES).read_bytes() == b"mine"

    async def test_nothing_of_another_version_stays(self, tmp_path):
        (tmp_path / WEIGHTS).write_bytes(b"joined from shards by an earlier attempt")
        (tmp_path / CARD).write_bytes(b"old card")
        (tmp_path / "request.json").write_bytes(b"{}")
        shards = sharded_weights(weights_bytes(), num_shards=2)
        request = request_of()

        await fetcher_of(ScriptedSource({CONFIG: b"{}", **shards})).fetch(running_of(request), request, tmp_path)

        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS, "request.json"])
        assert (tmp_path / WEIGHTS).read_bytes() != b"joined from shards by an earlier attempt"

    async def test_the_job_tells_how_far_it_is(self, tmp_path):
        request = request_of()
        running = running_of(request)
        source = ScriptedSource(adapter_files(), steps=[25 << 20, 50 << 20])
        work = asyncio.create_task(fetcher_of(source).fetch(running, request, tmp_path))
        seen = [running.job]
        for step in (25, 50):
            await asyncio.to_thread(source.arrived.acquire)
            await running.flush()
            assert f" {step}.0 of 100.0 MiB" in running.job.detail
            seen.append(running.job)
            source.gate.release()
        await work

        assert [job.state for job in seen] == [IngestState.FETCHING] * 3
        assert seen[0].progress < seen[1].progress < seen[2].progress
        assert seen[2].progress < seen[2].moved(IngestState.VALIDATING, detail="").progress

    async def test_a_size_that_is_not_known_is_not_made_up(self):
        request = request_of()
        running = running_of(request)
        before = running.job.progress
        FetchProgress(running)(3 << 20, None)
        await running.flush()

        assert running.job.progress == before
        assert running.job.detail == "fetching the files: 3.0 MiB"

    async def test_a_job_that_is_called_off_ends_the_fetch_at_its_next_piece(self, tmp_path):
        request, jobs = request_of(), InMemoryJobStore()
        running = running_of(request, jobs)
        await jobs.put(running.job)
        source = ScriptedSource(adapter_files(), steps=[1 << 20])
        work = asyncio.create_task(fetcher_of(source).fetch(running, request, tmp_path))
        await asyncio.to_thread(source.arrived.acquire)
        await jobs.request_cancel(request.job_id)
        await running.look_for_cancellation()
        source.gate.release()

        with pytest.raises(RequestAborted):
            await work
        assert list(tmp_path.iterdir()) == []

    async def test_a_fetch_that_nobody_waits_for_ends_at_its_next_piece(self, tmp_path):
        request = request_of()
        running = running_of(request)
        source = ScriptedSource(adapter_files(), steps=[1 << 20])
        work = asyncio.create_task(fetcher_of(source).fetch(running, request, tmp_path))
        await asyncio.to_thread(source.arrived.acquire)
        work.cancel()
        running.abandon()
        with pytest.raises(asyncio.CancelledError):
            await work
        source.gate.release()

        assert await asyncio.to_thread(source.ended.wait, 10)
        assert list(tmp_path.iterdir()) == []


class TestChoice:
    def test_a_revision_or_an_archive_is_not_part_of_a_name(self):
        assert archive_stem("sorter.tar.zst") == "sorter"
        assert archive_stem("SORTER.TGZ") == "SORTER"
        assert archive_stem("sorter") == ""

    def test_only_what_makes_an_adapter_is_fetched(self):
        names = [CONFIG_FILE, WEIGHTS_FILE, "adapter_model-00001-of-00001.safetensors", "optimizer.pt", "README.md"]

        assert files_to_fetch(names, place="p") == (CONFIG_FILE, WEIGHTS_FILE, "README.md")
        assert SAMPLES_FILE not in files_to_fetch(names, place="p")
