"""The registry is gone, or behind a black hole, while the router serves and while it starts."""

from __future__ import annotations

import os
import time

import httpx
import pytest

from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.builders.faulty_stack import ANSWER, PROMPT, faulty_stack, until
from tests.builders.system import chosen_adapters
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import FakeRegistry, catalog_entry
from tests.fakes.router_stack import eventually, task_texts
from tests.fakes.worker_service import FakeWorker

OUTAGE_SECONDS = float(os.environ.get("HILORA_OUTAGE_SECONDS", "3"))
"""How long the registry is away; a minute shows the same."""


class TestRegistryAway:
    @pytest.mark.parametrize("fault", ["refused", "black hole"])
    async def test_requests_go_on_from_the_last_picture_and_changes_arrive_afterwards(self, fault):
        async with faulty_stack() as stack:
            if fault == "refused":
                await stack.registry_line.refuse()
            else:
                stack.registry_line.swallow()
            stack.upsert("poems")
            until_when = time.monotonic() + OUTAGE_SECONDS
            while time.monotonic() < until_when:
                answer = await stack.ask()
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["text"] == ANSWER
                assert chosen_adapters(answer.json()) == ["capitals"]
            assert not await stack.plans("poems")

            await stack.registry_line.accept()
            stack.registry_line.heal()

            await until(lambda: stack.plans("poems"), what="the adapter that came meanwhile is chosen", seconds=40)

    async def test_a_router_that_starts_without_it_says_so_and_begins_when_it_is_there(self):
        encoder, registry, worker = HashEncoder(), FakeRegistry(), FakeWorker()
        registry.service.upsert(catalog_entry("capitals", task_texts("capitals"), encoder=encoder))
        worker.service.catalog_generation = registry.service.generation
        await registry.start()
        await worker.start()
        async with FaultProxy(registry.address) as line:
            await line.refuse()
            settings = RouterSettings(
                rpc_port=0, rest_port=0, registry_address=line.address, worker_addresses=(worker.address,)
            )
            router = build_router(settings, load_encoder=lambda: encoder)
            await router.start()
            async with httpx.AsyncClient(base_url=f"http://{router.rest_address}", trust_env=False) as client:
                ready = await client.get("/readyz")
                refused = await client.post("/v1/completions", json={"model": "auto", "prompt": PROMPT})
                assert ready.status_code == 503
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "catalog_not_loaded"

                await line.accept()

                await eventually(lambda: router.readiness().can_generate, timeout_seconds=20)
                answer = await client.post("/v1/completions", json={"model": "auto", "prompt": PROMPT})
                assert answer.status_code == 200
            await router.stop(grace_seconds=0)
        await worker.stop()
        await registry.stop()
