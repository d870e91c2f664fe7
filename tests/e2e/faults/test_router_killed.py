"""A router is killed in the middle of its work; another one goes on, and it comes back by itself."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from services.common.auth import digest_of_key
from tests.builders.patience import patient
from tests.builders.redis_server import redis_server
from tests.builders.router_process import RouterProcess
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import eventually, task_texts
from tests.fakes.worker_service import FakeWorker

PROMPT = task_texts("capitals")[0]
LIMIT = 6


@asynccontextmanager
async def routers_of_their_own(tmp_path, *, num_routers):
    """A worker, and routers on one registry and one Redis, each a process."""
    encoder, registry, worker = HashEncoder(), FakeRegistry(), FakeWorker()
    for task in ("capitals", "sums"):
        registry.service.upsert(catalog_entry(task, task_texts(task), encoder=encoder))
    worker.service.catalog_generation = registry.service.generation
    keys = tmp_path / "keys.json"
    keys.write_text(
        json.dumps([{"name": "a", "sha256": digest_of_key("secret"), "limits": {"requests_per_minute": LIMIT}}])
    )
    async with AsyncExitStack() as stack:
        for part in (registry, worker):
            await part.start()
            stack.push_async_callback(part.stop)
        redis_url = stack.enter_context(redis_server(tmp_path / "redis"))
        routers = [
            RouterProcess(
                tmp_path / f"router-{number}.log",
                registry_address=registry.address,
                worker_addresses=worker.address,
                redis_url=redis_url,
                api_keys_file=keys,
            )
            for number in range(num_routers)
        ]
        for router in routers:
            router.start()
            stack.callback(router.kill)
        for router in routers:
            await router.ready()
        headers = {"Authorization": "Bearer secret"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(headers=headers, timeout=patient(30), trust_env=False)
        )
        yield worker.service, routers, client


async def complete(client, router, prompt, **hilora):
    body = {"model": "auto", "prompt": prompt, "hilora": hilora}
    return await client.post(f"{router.url}/v1/completions", json=body)


class TestRouterKilled:
    async def test_its_streams_break_at_once_and_its_work_is_aborted(self, tmp_path):
        async with routers_of_their_own(tmp_path, num_routers=1) as (worker, (router,), client):
            worker.seconds_per_token = 30.0
            body = {"model": "auto", "prompt": PROMPT, "stream": True}

            with pytest.raises(httpx.TransportError):
                async with asyncio.timeout(patient(10)):
                    async with client.stream("POST", f"{router.url}/v1/completions", json=body) as answer:
                        await eventually(lambda: worker.num_running == 1)
                        router.kill()
                        async for line in answer.aiter_lines():
                            assert line != "data: [DONE]"

            await eventually(lambda: worker.num_running == 0)
            assert len(worker.aborted) == 1

    async def test_another_one_goes_on_with_its_sessions_and_limits_and_it_comes_back(self, tmp_path):
        async with routers_of_their_own(tmp_path, num_routers=2) as (_, (first, second), client):
            told = (await complete(client, first, PROMPT, session_id="s")).json()["hilora"]
            first.kill()

            with pytest.raises(httpx.ConnectError):
                await complete(client, first, "hm", session_id="s")
            kept = (await complete(client, second, "hm", session_id="s")).json()["hilora"]
            assert (kept["session"]["verdict"], kept["session"]["turn"]) == ("kept", 2)
            assert kept["plan_id"] == told["plan_id"]
            used = [(await complete(client, second, PROMPT)).status_code for _ in range(LIMIT - 2)]
            assert used == [200] * (LIMIT - 2)

            first.start()
            await first.ready()
            # It knows of the requests that it and the other one answered before.
            assert (await complete(client, first, "hm", session_id="s")).status_code == 429
