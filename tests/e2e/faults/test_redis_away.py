"""Redis is killed and comes back: what the router keeps there, and what the whole system does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack

import httpx
import pytest

from services.common.auth import digest_of_key
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from services.worker.infra.registration import RedisRegistration
from tests.builders.patience import patient
from tests.builders.redis_server import RedisServer
from tests.builders.system import RunningSystem, chosen_adapters, lines_of, task_lines, upload, wait_until
from tests.e2e.test_supervision import child
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry
from tests.fakes.router_stack import eventually, running_router, task_texts
from tests.fakes.worker_service import FakeWorker


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()


def keys_file(folder, **limits):
    """A file with one key, `secret`."""
    path = folder / "keys.json"
    path.write_text(json.dumps([{"name": "ann", "sha256": digest_of_key("secret"), "limits": limits}]))
    return path


class TestLimits:
    async def test_they_are_counted_by_each_router_meanwhile_and_together_again_afterwards(self, redis, tmp_path):
        file = keys_file(tmp_path, requests_per_minute=6)
        headers = {"Authorization": "Bearer secret"}
        async with (
            running_router(api_keys_file=file, redis_url=redis.url) as stack,
            httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=patient(30), trust_env=False) as client,
        ):

            async def ask():
                answer = await client.post("/v1/completions", json={"model": "base", "prompt": "x"})
                return answer.status_code

            assert [await ask() for _ in range(3)] == [200] * 3
            redis.kill()
            assert [await ask() for _ in range(8)] == [200] * 6 + [429] * 2

            # It has lost what was counted: callers may get as much once more, and not twice.
            redis.start()
            await asyncio.sleep(1.5)
            statuses = [await ask() for _ in range(8)]
            assert statuses == [200] * 6 + [429] * 2


class TestSessions:
    async def test_conversations_keep_their_plans(self, redis):
        async with (
            running_router(redis_url=redis.url) as stack,
            httpx.AsyncClient(base_url=stack.url, timeout=patient(30), trust_env=False) as client,
        ):

            async def say(prompt):
                body = {"model": "auto", "prompt": prompt, "hilora": {"session_id": "s"}}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()["hilora"]

            first = await say(task_texts("capitals")[0])
            redis.kill()
            told = [await say("hm") for _ in range(2)]
            redis.start()
            await asyncio.sleep(1.5)
            told += [await say("hm") for _ in range(2)]

        assert [one["session"]["verdict"] for one in told] == ["kept"] * 4
        assert [one["session"]["turn"] for one in told] == [2, 3, 4, 5]
        assert {one["plan_id"] for one in told} == {first["plan_id"]}


class TestDiscovery:
    async def test_known_workers_stay_and_new_ones_are_found_afterwards(self, redis):
        registry, workers = FakeRegistry(), [FakeWorker(name=name) for name in ("old", "new")]
        async with AsyncExitStack() as stack:
            for part in (registry, *workers):
                await part.start()
                stack.push_async_callback(part.stop)
            old, new = (
                RedisRegistration(redis.url, worker_id=worker.service.name, address=worker.address)
                for worker in workers
            )
            await old.start()
            stack.push_async_callback(old.stop, grace_seconds=0)
            settings = RouterSettings(
                rpc_port=0,
                rest_port=0,
                registry_address=registry.address,
                worker_addresses=("redis",),
                redis_url=redis.url,
                worker_lookup_seconds=1.5,
            )
            router = build_router(settings, load_encoder=HashEncoder)
            await router.start()
            stack.push_async_callback(router.stop, grace_seconds=0)
            await eventually(lambda: router._workers.fleet().num_live == 1, timeout_seconds=10)

            redis.kill()
            await asyncio.sleep(3.5)
            assert router._workers.fleet().num_live == 1
            redis.start()
            await new.start()
            stack.push_async_callback(new.stop, grace_seconds=0)

            await eventually(lambda: router._workers.fleet().num_live == 2, timeout_seconds=10)
            # Nor does the older one leave because the empty Redis did not name it for a moment.
            await asyncio.sleep(4.5)
            assert router._workers.fleet().num_live == 2


class TestRedisKilled:
    def test_requests_go_on_and_uploads_work_after_its_return(self, system: RunningSystem, tmp_path):
        line = lines_of(task_lines("fit")[0]["task"])[0]
        killed = child(system, "redis-server")
        os.kill(killed, signal.SIGKILL)

        answers = [system.complete(line["prompt"]) for _ in range(5)]

        assert [chosen_adapters(answer) for answer in answers] == [[line["task"]]] * 5
        wait_until(
            lambda: child(system, "redis-server") not in {None, killed}, timeout_seconds=30, what="another Redis runs"
        )
        wait_until(
            lambda: httpx.get(f"{system.url}/v1/adapters", timeout=patient(30)).status_code == 200,
            timeout_seconds=30,
            what="the registry answers",
        )
        status, job = upload(system, name="after-the-fault", task=line["task"], scratch=tmp_path)
        assert status == 202, job
        wait_until(
            lambda: system.get(f"/v1/jobs/{job['job_id']}")["state"] == "READY",
            timeout_seconds=60,
            what="the upload is READY",
        )
        httpx.delete(f"{system.url}/v1/adapters/after-the-fault", timeout=patient(30)).raise_for_status()
