"""Celery and Redis as they are: processes killed in the middle of a job, several jobs at a time, jobs called off."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import httpx
import redis

from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.job import IngestState
from tests.builders.registry_process import ROOT, TESTBED, RegistryProcesses
from tests.builders.system import free_port

MANY_TEXTS = 1000
"""So many samples take seconds to embed: time enough to be killed in."""


def slow_files(task, *, seed=0):
    folder = TESTBED / "adapters" / task
    lines = (json.dumps({"text": f"{seed} {task} " + "word " * 60 + str(n)}) for n in range(MANY_TEXTS))
    return [
        ("files", ("adapter_config.json", (folder / "adapter_config.json").read_bytes())),
        ("files", ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes())),
        ("samples", ("samples.jsonl", "\n".join(lines).encode())),
    ]


class Store:
    """The jobs as Redis knows them, whichever processes live."""

    def __init__(self, url):
        self._redis = open_redis(url)
        self.jobs = RedisJobStore(self._redis, lease_seconds=1.5, max_finished_jobs=100)

    async def until(self, job_id, condition, *, seconds=120.0):
        deadline = time.monotonic() + seconds
        while True:
            job = await self.jobs.get(job_id)
            if job is not None and condition(job):
                return job
            assert time.monotonic() < deadline, job
            await asyncio.sleep(0.02)

    async def close(self):
        await self._redis.aclose()


def celery_keys(url):
    """What Celery keeps: messages nobody took, and messages nobody acknowledged."""
    client = redis.Redis.from_url(url)
    try:
        return client.llen("hilora:celery:registry-ingest"), client.hlen("hilora:celery:unacked")
    finally:
        client.close()


def start_registry(settings, log_path):
    """`python -m services.registry` as a process of its own, so that it can be killed."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.registry"],
            env={**os.environ, **settings.to_environment()},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


async def until_ready(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(1200):
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise AssertionError("the registry does not get ready")


class TestParentAndChildKilled:
    async def test_the_message_returns_by_itself_and_the_job_is_done_once(self, tmp_path):
        """No registry lives to notice: the queue's visibility time-out alone brings the job back."""
        port = free_port()
        processes = RegistryProcesses(tmp_path, rest_port=port, ingest_visibility_seconds=2.0)
        url = processes.settings.redis_url.get_secret_value()
        processes.redis.start()
        processes.start_ingest()
        registry = start_registry(processes.settings, tmp_path / "registry.log")
        store = Store(url)
        try:
            await until_ready(f"http://127.0.0.1:{port}")
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                answer = await client.post(
                    f"http://127.0.0.1:{port}/v1/adapters",
                    data={"name": "sort-letters"},
                    files=slow_files("sort-letters"),
                )
            job_id = answer.json()["job_id"]
            await store.until(job_id, lambda job: job.state is IngestState.PROFILING)
            registry.kill()
            processes.kill_ingest()
            registry.wait()
            interrupted = await store.jobs.get(job_id)
            assert interrupted.state is IngestState.PROFILING
            assert celery_keys(url) == (0, 1)

            processes.start_ingest()
            job = await store.until(job_id, lambda job: job.state.is_terminal)

            assert job.state is IngestState.READY, job
            assert await store.jobs.outcomes() == {"READY": 1}
            for _ in range(100):
                if celery_keys(url) == (0, 0):
                    break
                await asyncio.sleep(0.1)
            assert celery_keys(url) == (0, 0)
            assert len(list((processes.settings.data_dir / "artifacts").iterdir())) == 1
            assert list((processes.settings.data_dir / "incoming").iterdir()) == []
        finally:
            registry.kill()
            registry.wait()
            processes.kill_ingest()
            await store.close()
            processes.redis.close()


class TestSeveralAtATime:
    async def test_as_many_as_allowed_run_side_by_side_survive_a_kill_and_can_be_called_off(self, tmp_path):
        processes = RegistryProcesses(tmp_path, max_concurrent_ingests=2)
        await processes.start()
        store = Store(processes.settings.redis_url.get_secret_value())
        try:
            names = ("sort-letters", "sort-digits", "copy-letters")
            job_ids = []
            for name in names:
                answer = await processes.client.post("/v1/adapters", data={"name": name}, files=slow_files(name))
                job_ids.append(answer.json()["job_id"])
            again = await processes.client.post("/v1/adapters", data={"name": names[0]}, files=slow_files(names[0]))
            assert again.json()["job_id"] == job_ids[0]

            working = []
            deadline = time.monotonic() + 120
            while len(working) < 2 and time.monotonic() < deadline:
                states = [(await store.jobs.get(job_id)).state for job_id in job_ids]
                working = [state for state in states if state is not IngestState.PENDING and not state.is_terminal]
                assert len(working) <= 2
                await asyncio.sleep(0.01)
            assert len(working) == 2, states

            processes.kill_ingest()
            cancelled = await processes.client.delete(f"/v1/jobs/{job_ids[2]}")
            assert cancelled.status_code in {200, 202}, cancelled.text
            processes.start_ingest()

            jobs = [await processes.finished(job_id, timeout_seconds=120) for job_id in job_ids[:2]]
            last = await store.until(job_ids[2], lambda job: job.state.is_terminal)

            assert [job["state"] for job in jobs] == ["READY", "READY"], jobs
            assert last.state is IngestState.CANCELLED
            assert sorted(await processes.names()) == ["sort-digits", "sort-letters"]
            assert await store.jobs.outcomes() == {"READY": 2, "CANCELLED": 1}

            running = await processes.client.post(
                "/v1/adapters", data={"name": "swap-letters"}, files=slow_files("swap-letters")
            )
            job_id = running.json()["job_id"]
            await store.until(job_id, lambda job: job.state is IngestState.PROFILING)
            asked = await processes.client.delete(f"/v1/jobs/{job_id}")
            job = await store.until(job_id, lambda job: job.state.is_terminal)

            assert (asked.status_code, asked.json()["is_cancel_requested"]) == (202, True)
            assert job.state is IngestState.CANCELLED
            assert "swap-letters" not in await processes.names()
            metrics = (await processes.client.get("/metrics")).text
            assert 'hilora_registry_ingest_outcomes_total{code="",state="CANCELLED"} 2.0' in metrics
        finally:
            await store.close()
            await processes.stop()
