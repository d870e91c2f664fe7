"""Tenants, trust and traffic at the router's doors."""

from __future__ import annotations

import httpx
import pytest

from hilora.errors import InvalidInput, UnknownAdapter
from hilora_rpc.v1 import registry_pb2, router_pb2, router_pb2_grpc
from services.common.rpc_client import open_channel, translated_errors
from tests.fakes.router_registry import catalog_entry
from tests.fakes.router_stack import eventually, running_router, task_texts

_ACME = {"X-HiLoRA-Tenant": "acme"}
_CAPITALS = "country capital city nation capitals-99"


def restrict(stack, task, *, tier=registry_pb2.TRUST_TIER_COMMUNITY, visible_to=("acme",)):
    entry = catalog_entry(task, task_texts(task), encoder=stack.encoder)
    entry.trust_tier = tier
    entry.visible_to.extend(visible_to)
    stack.registry.service.upsert(entry)
    stack.workers_catch_up()


async def restricted(stack, task):
    await eventually(lambda: bool(stack.router._catalog.view().adapters[task].access.visible_to))
    await stack.ready()


class TestTenants:
    async def test_what_a_tenant_may_not_use_does_not_exist(self):
        async with running_router(trust_tenant_header=True) as stack:
            restrict(stack, "capitals")
            await restricted(stack, "capitals")
            async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:

                async def seen(**headers):
                    models = (await client.get("/v1/models", headers=headers)).json()["data"]
                    route = (await client.post("/v1/route", json={"text": _CAPITALS}, headers=headers)).json()
                    named = {"model": "capitals", "prompt": "x"}
                    answer = await client.post("/v1/completions", json=named, headers=headers)
                    candidates = [candidate["name"] for candidate in route["candidates"]]
                    listed = [model["id"] for model in models]
                    return "capitals" in listed, "capitals" in candidates, answer.status_code

                assert await seen() == (False, False, 404)
                assert await seen(**{"X-HiLoRA-Tenant": "other"}) == (False, False, 404)
                assert await seen(**_ACME) == (True, True, 200)

    async def test_a_client_s_word_is_refused_unless_the_operator_trusts_it(self):
        async with running_router() as stack:
            async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:
                for answer in (
                    await client.get("/v1/models", headers=_ACME),
                    await client.post("/v1/route", json={"text": "x"}, headers=_ACME),
                    await client.post("/v1/completions", json={"model": "auto", "prompt": "x"}, headers=_ACME),
                ):
                    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "tenant_not_accepted")
            options = router_pb2.RoutingOptions(tenant="acme")
            with pytest.raises(InvalidInput):
                await self._route(stack, options)

    async def test_grpc_obeys_the_same_rules(self):
        async with running_router(trust_tenant_header=True) as stack:
            restrict(stack, "capitals")
            await restricted(stack, "capitals")
            named = router_pb2.RoutingOptions(model="capitals")
            with pytest.raises(UnknownAdapter):
                await self._route(stack, named)
            named.tenant = "acme"
            assert (await self._route(stack, named)).decision.plan.budgets
            named.min_trust_tier = registry_pb2.TRUST_TIER_TRUSTED
            with pytest.raises(UnknownAdapter):
                await self._route(stack, named)

    async def test_a_request_can_ask_for_trusted_adapters_only(self):
        async with running_router() as stack:
            body = {"text": _CAPITALS, "hilora": {"min_trust_tier": "trusted"}}
            async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:
                route = (await client.post("/v1/route", json=body)).json()
            assert route["candidates"] == []

    async def _route(self, stack, options):
        channel = open_channel(stack.router.rpc_address)
        try:
            with translated_errors(peer="router"):
                request = router_pb2.RouteRequest(text=_CAPITALS, options=options)
                return await router_pb2_grpc.RouterServiceStub(channel).Route(request)
        finally:
            await channel.close()


class TestTraffic:
    async def test_served_decisions_are_counted_and_an_untrusted_favourite_alarms(self):
        async with running_router(traffic_alarm_min_decisions=3) as stack:
            entry = catalog_entry("capitals", task_texts("capitals"), encoder=stack.encoder)
            entry.trust_tier = registry_pb2.TRUST_TIER_UNTRUSTED
            stack.registry.service.upsert(entry)
            stack.workers_catch_up()
            await eventually(lambda: stack.router._catalog.view().catalog_generation == 4)
            await stack.ready()
            async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:
                for _ in range(4):
                    await client.post("/v1/completions", json={"model": "auto", "prompt": _CAPITALS})
                await client.post("/v1/route", json={"text": _CAPITALS})
                stats = (await client.get("/v1/route/stats")).json()
                metrics = (await client.get("/metrics")).text

        assert stats["num_decisions"] == 4, "asking without generating does not count"
        assert stats["adapters"][0]["name"] == "capitals"
        assert stats["adapters"][0]["alarm"] == "share"
        assert "hilora_router_traffic_alarms 1.0" in metrics
        assert 'hilora_router_traffic_alarms_raised_total{reason="share"} 1.0' in metrics
