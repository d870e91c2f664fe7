"""The registry with a real Redis and a real Celery process: work, sudden deaths, and what is found afterwards."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import redis

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOL = ("sort-letters", "sort-digits", "copy-digits", "copy-letters")
WORKING = {"DECOMPOSING", "PROFILING"}


def staged(registry) -> list[str]:
    """The jobs whose uploads are kept; a killed process may leave what it was about to remove, under another name."""
    return [folder.name for folder in (registry.settings.data_dir / "incoming").iterdir() if folder.name[0] != "."]


class TestWork:
    async def test_an_upload_becomes_an_adapter(self, registry):
        job = await registry.finished(await registry.upload("reverse-letters"))

        assert (job["state"], job["progress"]) == ("READY", 1.0), job
        shown = (await registry.client.get("/v1/adapters/reverse-letters")).json()
        assert shown["adapter_id"] == job["adapter_id"]
        assert shown["encoder_id"].startswith("all-MiniLM-L6-v2:")
        assert shown["num_samples"] == 5

    async def test_it_steps_back_for_those_who_wait_for_an_answer(self, registry):
        own = os.getpriority(os.PRIO_PROCESS, 0)

        assert registry.settings.ingest_niceness > 0
        assert os.getpriority(os.PRIO_PROCESS, registry.ingest_pid) == min(own + registry.settings.ingest_niceness, 19)

    async def test_what_is_wrong_with_a_source_is_said_by_the_job(self, registry):
        folder = registry.settings.allowed_local_dirs[0] / "base"
        body = {"name": "no-adapter", "source": {"path": str(folder)}, "samples": ["a"]}
        accepted = await registry.client.post("/v1/adapters", json=body)

        job = await registry.finished(accepted.json()["job_id"])

        assert (job["state"], job["error"]["code"]) == ("FAILED", "missing_file")
        assert job["error"]["remedy"]

    async def test_messages_are_json_in_our_own_part_of_redis(self, registry):
        client = redis.Redis.from_url(registry.settings.redis_url.get_secret_value())

        assert all(key.startswith(b"hilora:") for key in client.scan_iter())
        client.close()


class TestSuddenDeath:
    async def test_a_killed_ingest_process_costs_nothing(self, registry):
        job_ids = [await registry.upload(name) for name in POOL]
        states: list[str] = []
        while not WORKING.intersection(states):
            states = [(await registry.job(job_id))["state"] for job_id in job_ids]
        registry.kill_ingest()
        interrupted = [job_id for job_id in job_ids if (await registry.job(job_id))["state"] != "READY"]
        assert interrupted
        before = await registry.names()

        registry.start_ingest()
        jobs = [await registry.finished(job_id) for job_id in job_ids]

        assert [job["state"] for job in jobs] == ["READY"] * 4, jobs
        assert set(await registry.names()) == {*before, *POOL}
        assert staged(registry) == []

    async def test_everything_killed_and_redis_emptied(self, registry):
        before = (await registry.client.get("/v1/adapters")).json()
        registry.kill_ingest()
        job_id = await registry.upload("count-letters", "reverse-letters")
        await registry.stop_service()
        client = redis.Redis.from_url(registry.settings.redis_url.get_secret_value())
        client.flushall()
        client.close()
        registry.redis.kill()

        registry.redis.start()
        registry.start_ingest()
        await registry.start_service()

        after = (await registry.client.get("/v1/adapters")).json()
        assert after["data"] == before["data"]
        assert after["catalog_generation"] > before["catalog_generation"]
        job = await registry.finished(job_id)
        assert job["state"] == "READY", job

    async def test_redis_emptied_while_it_runs(self, registry):
        before = (await registry.client.get("/v1/adapters")).json()
        client = redis.Redis.from_url(registry.settings.redis_url.get_secret_value())
        client.flushall()
        client.close()

        after = (await registry.client.get("/v1/adapters")).json()

        assert after["data"] == before["data"]
        assert after["catalog_generation"] > before["catalog_generation"]
        job = await registry.finished(await registry.upload("swap-letters"))
        assert job["state"] == "READY", job

    async def test_redis_that_is_away_is_a_503_and_nothing_is_kept(self, registry):
        registry.redis.kill()
        answer = await registry.client.get("/v1/adapters")
        upload = await registry.client.post(
            "/v1/adapters", json={"source": {"path": str(registry.settings.allowed_local_dirs[0])}}
        )
        left = staged(registry)
        registry.redis.start()

        assert answer.status_code == upload.status_code == 503
        assert answer.json()["error"]["code"] == "redis_unavailable"
        assert left == []
        job = await registry.finished(await registry.upload("swap-digits"))
        assert job["state"] == "READY", job

    async def test_the_ingest_process_ends_on_sigterm(self, registry):
        process = registry._ingest
        os.kill(process.pid, signal.SIGTERM)

        assert await asyncio.to_thread(process.wait, 20) == 0
        registry.start_ingest()
