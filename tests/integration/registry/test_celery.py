"""Celery and Redis as they are: processes killed in the middle of a job, several jobs at a time, jobs called off."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import httpx
import pytest
import redis
from pydantic import SecretStr

from services.registry import bootstrap, process_setup
from services.registry.artifact import SampleProfile
from services.registry.infra.redis_connection import open_redis
from services.registry.infra.redis_jobs import RedisJobStore
from services.registry.infra.store_migration import DataFolder
from services.registry.job import IngestState
from services.registry.settings import RegistrySettings
from tests.builders import light_ingest
from tests.builders.archives import adapter_files, weights_bytes
from tests.builders.patience import patient
from tests.builders.redis_server import RedisServer

PATIENCE_SECONDS = 240
pytestmark = pytest.mark.timeout(900)


class Processes:
    """Redis and ingest processes apart; the registry itself in the test's process, with a base that needs no model."""

    def __init__(self, directory, **settings):
        self.redis = RedisServer(directory / "redis", keeps_data=True)
        self.settings = RegistrySettings(
            rpc_port=0,
            rest_port=0,
            base_model="tiny",
            data_dir=directory / "data",
            redis_url=SecretStr(self.redis.url),
            job_lease_seconds=1.5,
            recovery_interval_seconds=0.3,
            watch_heartbeat_seconds=0.3,
            allow_anonymous_admin=True,
            **settings,
        )
        self.settings.data_dir.mkdir()
        self.hold = self.settings.data_dir / "hold"
        self.ingests = []
        self.redis.start()
        self._client = open_redis(self.redis.url)
        self.jobs = RedisJobStore(self._client, lease_seconds=1.5, max_finished_jobs=100)
        self._log = directory / "ingest.log"
        self.service = None

    async def start_service(self):
        self.service = bootstrap.build_registry(self.settings)
        await self.service.start()
        self.http = httpx.AsyncClient(
            base_url=f"http://{self.service.rest_address}", trust_env=False, timeout=patient(60)
        )

    async def stop_service(self):
        if self.service is not None:
            await self.http.aclose()
            await self.service.stop(grace_seconds=0.2)
            self.service = None

    def start_ingest(self):
        self.ingests.append(light_ingest.start(self.settings, self._log))

    def kill_ingests(self):
        while self.ingests:
            process = self.ingests.pop()
            process.kill()
            process.wait()

    async def stop(self):
        await self.stop_service()
        self.kill_ingests()
        await self._client.aclose()
        self.redis.close()

    async def upload(self, name, seed=0):
        files = [("files", item) for item in adapter_files(weights=weights_bytes(seed=seed)).items()]
        answer = await self.http.post("/v1/adapters", data={"name": name}, files=files)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    async def until(self, condition):
        """The first true value of an asynchronous condition."""
        deadline = time.monotonic() + patient(PATIENCE_SECONDS)
        while not (value := await condition()):
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-3000:]
            await asyncio.sleep(0.02)
        return value

    async def in_state(self, state, *job_ids):
        async def are_there():
            jobs = [await self.jobs.get(job_id) for job_id in job_ids]
            return jobs if all(job.state is state for job in jobs) else None

        return await self.until(are_there)

    def celery_keys(self):
        """How many messages nobody took, and nobody acknowledged."""
        client = redis.Redis.from_url(self.redis.url)
        try:
            return client.llen("hilora:celery:registry-ingest"), client.hlen("hilora:celery:unacked")
        finally:
            client.close()

    async def broker_is_missed(self):
        log = self._log.read_text(errors="replace")
        return any(text in log for text in ("Couldn't ack", "Couldn't reject", "Connection to broker lost"))

    async def all_acknowledged(self):
        return self.celery_keys() == (0, 0)


@pytest.fixture
async def processes(request, tmp_path, monkeypatch):
    monkeypatch.setattr(process_setup, "TransformersBaseModel", light_ingest.fake_base)
    processes = Processes(tmp_path, **getattr(request, "param", {}))
    yield processes
    await processes.stop()


class TestKilled:
    @pytest.mark.parametrize("processes", [{"ingest_visibility_seconds": 3.0}], indirect=True)
    async def test_with_the_registry_gone_too_the_message_returns_and_the_job_is_done_once(self, processes):
        """Nobody is left to notice: the visibility time-out alone brings the job back."""
        processes.hold.touch()
        processes.start_ingest()
        await processes.start_service()
        job_id = await processes.upload("sorter")
        await processes.in_state(IngestState.PROFILING, job_id)
        await processes.stop_service()
        processes.kill_ingests()
        assert processes.celery_keys() == (0, 1)

        processes.hold.unlink()
        processes.start_ingest()

        await processes.in_state(IngestState.READY, job_id)
        await processes.until(processes.all_acknowledged)
        assert await processes.jobs.outcomes() == {"READY": 1}
        assert len(list((processes.settings.data_dir / "artifacts").iterdir())) == 1
        assert list((processes.settings.data_dir / "incoming").iterdir()) == []

    async def test_with_the_registry_alive_the_job_goes_on_at_once_and_the_late_message_does_nothing(self, processes):
        processes.hold.touch()
        processes.start_ingest()
        await processes.start_service()
        job_id = await processes.upload("sorter")
        await processes.in_state(IngestState.PROFILING, job_id)
        processes.kill_ingests()
        processes.hold.unlink()
        processes.start_ingest()

        (job,) = await processes.in_state(IngestState.READY, job_id)

        assert job.adapter_id.startswith("sorter@")
        assert await processes.jobs.outcomes() == {"READY": 1}
        # The first message is still in the hands of the dead: it would come back after the usual five minutes.
        assert processes.celery_keys()[1] >= 1


class TestRedisAway:
    @pytest.mark.parametrize(
        "processes", [{"max_concurrent_ingests": 1}, {"max_concurrent_ingests": 2}], indirect=True, ids=["one", "two"]
    )
    async def test_a_message_that_could_not_be_acknowledged_does_not_make_the_process_deaf(self, processes):
        processes.hold.touch()
        processes.start_ingest()
        await processes.start_service()
        job_ids = [await processes.upload(f"adapter-{number}", seed=number) for number in range(2)]
        await processes.in_state(IngestState.PROFILING, job_ids[0])
        processes.redis.kill()
        processes.hold.unlink()
        await processes.until(processes.broker_is_missed)
        processes.redis.start()

        await processes.in_state(IngestState.READY, *job_ids)


@pytest.mark.parametrize("processes", [{"max_concurrent_ingests": 2}], indirect=True)
class TestSeveralAtATime:
    async def test_as_many_as_allowed_run_side_by_side_and_each_is_done_once(self, processes):
        processes.hold.touch()
        await processes.start_service()
        job_ids = [await processes.upload(f"adapter-{number}", seed=number) for number in range(4)]
        joined = [await processes.upload(f"adapter-{number}", seed=number) for number in range(4)]
        assert joined == job_ids
        processes.start_ingest()

        async def working():
            jobs = [await processes.jobs.get(job_id) for job_id in job_ids]
            found = [job.job_id for job in jobs if job.state is IngestState.PROFILING]
            assert len(found) <= 2
            return found if len(found) == 2 else None

        running = await processes.until(working)
        waiting = next(job_id for job_id in job_ids if job_id not in running)
        assert (await processes.jobs.get(waiting)).state is IngestState.PENDING

        at_once = await processes.http.delete(f"/v1/jobs/{waiting}")
        asked = await processes.http.delete(f"/v1/jobs/{running[0]}")
        assert (at_once.status_code, at_once.json()["state"]) == (200, "CANCELLED")
        assert (asked.status_code, asked.json()["is_cancel_requested"]) == (202, True)
        processes.hold.unlink()

        left = [job_id for job_id in job_ids if job_id not in {waiting, running[0]}]
        await processes.in_state(IngestState.READY, *left)
        await processes.in_state(IngestState.CANCELLED, waiting, running[0])
        await processes.until(processes.all_acknowledged)
        assert await processes.jobs.outcomes() == {"READY": 2, "CANCELLED": 2}
        listed = (await processes.http.get("/v1/adapters")).json()["data"]
        assert len(listed) == 2
        metrics = (await processes.http.get("/metrics")).text
        assert 'hilora_registry_ingest_outcomes_total{code="",state="CANCELLED"} 2.0' in metrics


class TestStreamsOverSockets:
    async def test_a_stop_does_not_wait_for_those_who_listen(self, processes):
        await processes.start_service()
        job_id = await processes.upload("sorter")
        lines = []

        async def listen(path):
            async with processes.http.stream("GET", path) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    lines.append(line)

        listening = [asyncio.create_task(listen(path)) for path in ("/v1/adapters/events", f"/v1/jobs/{job_id}/events")]
        await processes.until(lambda: asyncio.sleep(0, ": heartbeat" in lines and "event: job" in lines))
        service, processes.service = processes.service, None

        stopping = asyncio.create_task(service.stop(grace_seconds=100))
        await asyncio.wait({stopping}, timeout=patient(60))
        # `wait_for` would take a stop that ends because it is cancelled for one that has ended.
        assert stopping.done()

        await asyncio.gather(*listening)
        await processes.http.aclose()


class TestReprofiling:
    @pytest.mark.parametrize("processes", [{"reprofile_look_seconds": 0.5}], indirect=True)
    async def test_what_appears_under_another_encoder_is_embedded_without_a_restart(self, processes):
        processes.start_ingest()
        await processes.start_service()
        await processes.in_state(IngestState.READY, await processes.upload("sorter"))
        data = DataFolder(processes.settings.data_dir)
        (registration,) = data.registrations.all()
        (version,) = registration.versions
        (encoder_id, profile_id) = next(iter(version.profile_ids.items()))
        old = data.profiles.write(
            version.revision,
            SampleProfile(
                texts=data.profiles.texts(version.revision, profile_id),
                embeddings_mE=data.profiles.embeddings(version.revision, profile_id),
                encoder_id="another",
                source="upload",
            ),
        )
        changed = registration.replacing(replace(version, profile_ids={"another": old.profile_id}))
        data.registrations.put(changed, replaces=registration)

        async def is_embedded():
            return encoder_id in data.registrations.get("sorter").versions[0].profile_ids

        await processes.until(is_embedded)
        assert (await processes.http.get("/v1/adapters/sorter")).json()["encoder_id"] == encoder_id
