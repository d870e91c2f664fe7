"""Two routers on one Redis know each other's plans and sessions; tags come from the catalogue; gRPC can do it all."""

from __future__ import annotations

from contextlib import AsyncExitStack

import httpx
import pytest

from hilora.errors import Conflict, LowConfidence
from hilora_rpc.v1 import router_pb2, router_pb2_grpc, worker_pb2
from services.common.rpc_client import open_channel, translated_errors
from tests.builders.redis_server import RedisServer
from tests.fakes.router_registry import catalog_entry
from tests.fakes.router_stack import eventually, running_router, task_texts

_CAPITAL, _SUM = task_texts("capitals")[0], task_texts("sums")[0]


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.close()


async def complete(stack, prompt, **hilora):
    async with httpx.AsyncClient(base_url=stack.url, trust_env=False) as client:
        answer = await client.post("/v1/completions", json={"model": "auto", "prompt": prompt, "hilora": hilora})
        assert answer.status_code == 200, answer.text
        return answer.json()["hilora"]


class TestReplicas:
    async def test_turns_and_plans_go_from_one_router_to_the_other(self, redis):
        async with AsyncExitStack() as opened:
            one, other = [await opened.enter_async_context(running_router(redis_url=redis.url)) for _ in range(2)]
            first = await complete(one, _CAPITAL, session_id="s")
            second = await complete(other, "hm", session_id="s")
            assert second["session"]["verdict"] == "kept"
            assert second["plan_id"] == first["plan_id"]
            moved = await complete(one, _SUM, session_id="s")
            assert (moved["session"]["verdict"], moved["session"]["turn"]) == ("topic_moved", 3)
            pinned = await complete(other, "x", plan_id=moved["plan_id"])
            assert pinned["adapters"] == moved["adapters"]

    async def test_without_redis_each_goes_on_by_itself(self, redis):
        async with running_router(redis_url=redis.url) as stack:
            await complete(stack, _CAPITAL, session_id="s")
            redis.kill()
            for turn in (2, 3):
                told = await complete(stack, "hm", session_id="s")
                assert told["session"]["verdict"] == "kept"
                # What Redis had of it is gone with it; what this router put since is here.
                assert told["session"]["turn"] == turn


class TestTags:
    async def test_they_come_with_the_catalogue(self):
        async with running_router() as stack:
            entry = catalog_entry("poems", task_texts("poems"), encoder=stack.encoder)
            entry.tags.extend(["fun"])
            stack.registry.service.upsert(entry)
            stack.workers_catch_up()
            await eventually(lambda: bool(stack.router._catalog.view().adapters["poems"].tags))
            await stack.ready()
            told = await complete(stack, _CAPITAL, tags=["fun"], explain=True)
            assert [candidate["name"] for candidate in told["candidates"]] == ["poems"]


class TestOverRpc:
    async def test_sessions_plans_and_gating(self):
        async with running_router() as stack, open_channel(stack.router.rpc_address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)

            async def generate(prompt, *, explains_gating=False, **options):
                request = router_pb2.RoutedGenerateRequest(
                    prompt=prompt, options=router_pb2.RoutingOptions(**options), explains_gating=explains_gating
                )
                events = [event async for event in stub.Generate(request)]
                return events[0].route, events[-1].generated.finished

            first, _ = await generate(_CAPITAL, session_id="s")
            assert (first.is_sticky, first.session_id, first.session_turn) == (False, "s", 1)
            assert first.strategy == "hilora"
            second, finished = await generate("hm", session_id="s", explains_gating=True)
            assert (second.is_sticky, second.session_turn, second.plan_id) == (True, 2, first.plan_id)
            assert second.session_reason
            assert finished.num_gated_tokens > 0
            assert finished.gating[0].adapters[0].adapter_id == second.decision.plan.budgets[0].adapter_id
            pinned, _ = await generate(_SUM, plan_id=first.plan_id)
            assert [budget.adapter_name for budget in pinned.decision.plan.budgets] == ["capitals"]
            assert (pinned.session_id, pinned.strategy) == ("", "")

    async def test_refusals_come_with_their_kind(self):
        async with running_router() as stack, open_channel(stack.router.rpc_address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)
            refuse = router_pb2.LOW_CONFIDENCE_POLICY_REFUSE
            with pytest.raises(LowConfidence) as refused, translated_errors(peer="router"):
                await stub.Route(
                    router_pb2.RouteRequest(text="zzz qqq", options=router_pb2.RoutingOptions(low_confidence=refuse))
                )
            assert len(refused.value.details["candidates"]) == 3
            told = await stub.Route(
                router_pb2.RouteRequest(text="x", options=router_pb2.RoutingOptions(model="capitals"))
            )
            stack.remove("capitals")
            await eventually(lambda: "capitals" not in stack.router._catalog.view().adapters)
            with pytest.raises(Conflict) as gone, translated_errors(peer="router"):
                await stub.Route(
                    router_pb2.RouteRequest(text="x", options=router_pb2.RoutingOptions(plan_id=told.plan_id))
                )
            assert gone.value.code == "plan_gone"

    async def test_a_conversation_is_known_by_what_it_began_with(self):
        async with running_router() as stack, open_channel(stack.router.rpc_address) as channel:
            stub = router_pb2_grpc.RouterServiceStub(channel)

            async def say(*lines):
                roles = (worker_pb2.CHAT_ROLE_USER, worker_pb2.CHAT_ROLE_ASSISTANT)
                messages = [
                    worker_pb2.ChatMessage(role=roles[place % 2], content=line) for place, line in enumerate(lines)
                ]
                chat = worker_pb2.ChatInput(messages=messages)
                events = [event async for event in stub.Generate(router_pb2.RoutedGenerateRequest(chat=chat))]
                return events[0].route

            first = await say(_CAPITAL)
            second = await say(_CAPITAL, "Paris is the capital.", "hm")
            assert (second.is_sticky, second.session_id) == (True, first.session_id)
