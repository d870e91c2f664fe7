"""The router follows the catalogue while it serves."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

from hilora_rpc.v1 import registry_pb2
from tests.builders.patience import patient
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_registry import catalog_entry
from tests.fakes.router_stack import eventually, running_router, task_texts

_CAPITALS = task_texts("capitals")[0]


async def _names(stack) -> set[str]:
    async with httpx.AsyncClient(base_url=stack.url) as plain:
        return {model["id"] for model in (await plain.get("/v1/models")).json()["data"]}


async def _route(stack, text, **body):
    async with httpx.AsyncClient(base_url=stack.url) as plain:
        return await plain.post("/v1/route", json={"text": text, **body})


async def _planned(stack, text) -> list[str]:
    return [budget["name"] for budget in (await _route(stack, text)).json()["plan"]["budgets"]]


def _listed(stack, name: str) -> bool:
    return name in stack.router._catalog.view().adapters


class TestAdding:
    async def test_a_new_adapter_is_listed_chosen_and_named_without_a_restart(self):
        async with running_router(tasks=["sums", "poems"]) as stack:
            assert await _planned(stack, _CAPITALS) != ["capitals"]
            stack.add("capitals")
            await eventually(lambda: _listed(stack, "capitals"))
            assert "capitals" in await _names(stack)
            async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client:
                pinned = await client.completions.create(model="capitals", prompt="x")
                assert pinned.model_extra["hilora"]["catalog_generation"] == 3
            await stack.router._catalog.wait_beyond(2, timeout_seconds=patient(5))
            assert await _planned(stack, _CAPITALS) == ["capitals"]

    async def test_a_router_may_start_with_an_empty_catalogue(self):
        async with running_router(tasks=[]) as stack:
            answer = (await _route(stack, _CAPITALS)).json()
            assert answer["plan"]["budgets"] == []
            assert answer["is_out_of_distribution"] is True
            stack.add("capitals")
            stack.add("sums")
            await stack.router._catalog.wait_beyond(1, timeout_seconds=patient(5))
            assert await _planned(stack, _CAPITALS) == ["capitals"]


class TestRetiring:
    async def test_it_is_gone_from_the_list_and_from_plans_before_any_new_fit(self):
        async with running_router() as stack:
            catalog = stack.router._catalog
            fitted = catalog.view().router
            # No fit can follow: what hides the adapter is the change itself.
            catalog._tasks[1].cancel()
            stack.remove("capitals")
            await eventually(lambda: not _listed(stack, "capitals"))
            assert catalog.view().router is fitted
            assert "capitals" not in await _names(stack)
            route = (await _route(stack, _CAPITALS)).json()
            assert "capitals" not in {candidate["name"] for candidate in route["candidates"]}
            assert (await _route(stack, "x", model="capitals")).status_code == 404

    async def test_a_request_in_flight_finishes(self):
        async with running_router() as stack:
            stack.worker.service.seconds_per_token = 0.1
            async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client:
                running = asyncio.create_task(client.completions.create(model="capitals", prompt="x"))
                await eventually(lambda: stack.worker.service.num_running == 1)
                stack.remove("capitals")
                await eventually(lambda: not _listed(stack, "capitals"))
                assert (await running).choices[0].text == "Paris is the capital."


class TestNewVersions:
    async def test_a_plan_that_a_worker_has_outrun_is_made_again(self):
        async with running_router() as stack:
            service = stack.worker.service
            service.dropped_adapter_ids.add("capitals@aaaaaaaaaaaa")
            # The worker is ahead: it has dropped the old version before the router has heard of the new one.
            asyncio.get_running_loop().call_later(0.2, lambda: stack.add("capitals", revision="b" * 64))
            async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x", max_retries=0) as client:
                answer = await client.completions.create(model="auto", prompt=_CAPITALS)
            assert answer.model_extra["hilora"]["adapters"][0]["adapter_id"] == "capitals@bbbbbbbbbbbb"
            assert len(service.requests) == 2


class TestUnusableEntries:
    async def test_with_another_encoder_s_samples_it_can_be_named_but_not_chosen(self):
        async with running_router() as stack:
            foreign = HashEncoder(encoder_id="hash:2")
            stack.registry.service.upsert(catalog_entry("foreign", ["a b"], encoder=foreign))
            stack.workers_catch_up()
            await eventually(lambda: bool(stack.router._catalog.view().ignored))
            assert "foreign" in await _names(stack)
            assert "hash:2" in stack.router.readiness().parts["ignored"]
            assert await _planned(stack, _CAPITALS) == ["capitals"]

    @pytest.mark.parametrize(
        "broken",
        [
            {"sample_embeddings": b"123"},
            {"embedding_dim": 7},
            {"lora_rank": 0},
            {"sample_grams": b"\x01\x00"},
            {"sample_grams": b"\x01"},
            {"sample_embeddings": b"\x00\x00\xc0\x7f" * 32, "num_samples": 1},
        ],
    )
    async def test_a_lying_entry_harms_nobody_else(self, broken):
        async with running_router() as stack:
            entry = catalog_entry("lying", ["a b", "c d"], encoder=stack.encoder)
            for field, value in broken.items():
                setattr(entry, field, value)
            stack.registry.service.upsert(entry)
            stack.add("sums", revision="b" * 64)
            await stack.router._catalog.wait_beyond(4, timeout_seconds=patient(5))
            assert "lying" in stack.router._catalog.view().ignored
            assert await _planned(stack, _CAPITALS) == ["capitals"]

    async def test_an_adapter_without_samples_can_be_named_but_not_chosen(self):
        async with running_router() as stack:
            stack.registry.service.upsert(
                registry_pb2.CatalogEntry(adapter_id="bare@1", adapter_name="bare", lora_rank=4)
            )
            stack.workers_catch_up()
            await stack.router._catalog.wait_beyond(3, timeout_seconds=patient(5))
            assert "bare" in await _names(stack)
            assert (await _route(stack, "x", model="bare")).json()["plan"]["num_rocs"] == 4
            assert "bare" not in {c["name"] for c in (await _route(stack, "x")).json()["candidates"]}
