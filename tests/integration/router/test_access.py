"""Keys and limits at both doors of a running router, and over two routers on one Redis."""

from __future__ import annotations

import asyncio
import json
import time

import grpc
import httpx
import openai
import pytest
from redis.asyncio import Redis

from hilora_rpc.v1 import router_pb2, router_pb2_grpc
from services.common.auth import digest_of_key
from services.common.rpc_client import open_channel
from services.router.bootstrap import build_router
from services.router.entrypoints.access import PUBLIC_PATHS
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.builders.redis_server import redis_server
from tests.fakes.router_stack import running_router, task_texts


def record(name, **fields):
    return {"name": name, "sha256": digest_of_key(f"secret-{name}"), **fields}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(
        json.dumps(
            [
                record("ann", tenant="acme", limits={"requests_per_minute": 3}),
                record("bob", scopes=["read"]),
                record("eve"),
                record("tok", limits={"tokens_per_minute": 30}),
                record("one", limits={"max_concurrent": 1}),
            ]
        )
    )
    return path


@pytest.fixture
async def stack(file):
    async with running_router(api_keys_file=file) as it:
        yield it


def client(stack, name):
    return openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=f"secret-{name}", max_retries=0)


async def complete(stack, name, **fields):
    async with client(stack, name) as it:
        return await it.completions.create(model="base", prompt="one two", **fields)


class TestDoors:
    async def test_every_route_is_closed_without_a_key(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            schema = (await plain.get("/openapi.json", headers={"Authorization": "Bearer secret-eve"})).json()
            assert len(schema["paths"]) > len(PUBLIC_PATHS) + 5
            for path, methods in schema["paths"].items():
                for method in methods:
                    answer = await plain.request(method, path.replace("{model_id}", "base"))
                    assert (answer.status_code == 401) == (path not in PUBLIC_PATHS), path
            for path in (
                "/openapi.json",
                "/v1/tokenize",
                "/nowhere",
                "/v1/chat/completions/",
                "//v1/models",
                "/V1/models",
                "/healthz/../v1/models",
            ):
                assert (await plain.get(path)).status_code == 401

    async def test_a_scope_opens_its_routes_alone(self, stack):
        async with client(stack, "bob") as bob:
            assert (await bob.models.list()).data[0].id == "auto"
            with pytest.raises(openai.PermissionDeniedError) as refusal:
                await bob.completions.create(model="base", prompt="x")
        assert refusal.value.code == "insufficient_scope"

    async def test_a_key_s_tenant_is_the_request_s(self, stack):
        async with httpx.AsyncClient(base_url=stack.url, headers={"Authorization": "Bearer secret-ann"}) as ann:
            other = await ann.get("/v1/models", headers={"X-HiLoRA-Tenant": "other"})
            own = await ann.get("/v1/models", headers={"X-HiLoRA-Tenant": "acme"})
        assert (other.status_code, other.json()["error"]["code"]) == (400, "tenant_mismatch")
        assert own.status_code == 200

    async def test_grpc_needs_the_same_keys(self, stack):
        channel = open_channel(stack.router.rpc_address)
        stub = router_pb2_grpc.RouterServiceStub(channel)
        calls = {
            "Route": router_pb2.RouteRequest(text="x"),
            "ListModels": router_pb2.ListModelsRequest(),
            "Embed": router_pb2.EmbedRequest(texts=["x"]),
        }
        for method, request in calls.items():
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await getattr(stub, method)(request)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await getattr(stub, method)(request, metadata=[("authorization", "Bearer secret-eve")])
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Route(router_pb2.RouteRequest(text="x"), metadata=[("authorization", "Bearer secret-bob")])
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await channel.close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_nobody_opens_it_to_the_network_by_mistake(self, host, file):
        with pytest.raises(ValueError, match="API_KEYS_FILE"):
            build_router(RouterSettings(rest_host=host))
        build_router(RouterSettings(rest_host=host, api_keys_file=file))
        build_router(RouterSettings(rest_host=host, allow_anonymous=True))


class TestRevocation:
    async def test_a_revoked_key_stops_within_a_second(self, stack, file):
        await complete(stack, "eve")
        file.write_text(json.dumps([record("ann")]))
        revoked_at = time.monotonic()
        with pytest.raises(openai.AuthenticationError):
            while time.monotonic() - revoked_at < patient(1.0):
                await complete(stack, "eve")


class TestLimits:
    async def test_requests_are_counted_and_told(self, stack):
        async with client(stack, "ann") as ann:
            raw = await ann.completions.with_raw_response.create(model="base", prompt="x")
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == "2"
            await ann.chat.completions.create(model="base", messages=[{"role": "user", "content": "x"}])
            stream = await ann.completions.create(model="base", prompt="x", stream=True)
            assert [chunk async for chunk in stream]
            with pytest.raises(openai.RateLimitError) as refusal:
                await ann.completions.create(model="base", prompt="x", stream=True)
        assert refusal.value.code == "rate_limit_exceeded"
        assert 1 <= int(refusal.value.response.headers["Retry-After"]) <= 61

    async def test_tokens_are_counted_as_they_were_used(self, stack):
        # Two of the prompt and four of the answer each time.
        for _ in range(5):
            await complete(stack, "tok", max_tokens=4)
        with pytest.raises(openai.RateLimitError) as refusal:
            await complete(stack, "tok", max_tokens=4)
        assert refusal.value.param == "tokens_per_minute"

    async def test_an_answer_that_is_left_frees_its_place(self, stack):
        stack.worker.service.seconds_per_token = 0.3
        async with client(stack, "one") as one:
            stream = await one.completions.create(model="base", prompt="x", stream=True)
            with pytest.raises(openai.RateLimitError) as refusal:
                await one.completions.create(model="base", prompt="x")
            await stream.close()
            stack.worker.service.seconds_per_token = 0.0
            deadline = time.monotonic() + patient(5)
            while True:
                try:
                    await one.completions.create(model="base", prompt="x")
                    break
                except openai.RateLimitError:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
        assert refusal.value.param == "max_concurrent"

    async def test_the_router_as_a_whole_has_a_limit(self, file):
        async with running_router(api_keys_file=file, max_in_flight=1) as stack:
            stack.worker.service.seconds_per_token = 0.3
            running = asyncio.create_task(complete(stack, "eve"))
            await asyncio.sleep(0.3)
            with pytest.raises(openai.RateLimitError) as refusal:
                await complete(stack, "eve")
            await running
        assert refusal.value.code == "router_busy"


class TestReplicas:
    async def test_two_routers_hold_one_limit(self, tmp_path):
        limit = 400
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps([record("ann", limits={"requests_per_minute": limit})]))
        with redis_server(tmp_path) as url:
            async with (
                running_router(api_keys_file=keys, redis_url=url) as first,
                running_router(api_keys_file=keys, redis_url=url) as second,
            ):
                started = time.monotonic()
                ended = await asyncio.gather(*(self.ask_often(stack, limit) for stack in (first, second)))
                seconds = time.monotonic() - started
            client = Redis.from_url(url)
            assert await client.keys("hilora:limits:*")
            await client.aclose()
        admitted, refused = (sum(one[place] for one in ended) for place in (0, 1))
        assert seconds < 60, "the window moved on while the test asked"
        assert refused > 0
        assert abs(admitted - limit) <= 0.02 * limit

    async def ask_often(self, stack, limit):
        """Answers and refusals of many requests, sixteen at a time."""
        counts = [0, 0]
        asked = iter(range(int(limit * 0.75)))

        async def ask(it):
            for _ in asked:
                answer = await it.post("/v1/route", json={"text": task_texts("sums")[0], "model": "base"})
                assert answer.status_code in {200, 429}
                counts[answer.status_code == 429] += 1

        headers = {"Authorization": "Bearer secret-ann"}
        async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as it:
            await asyncio.gather(*(ask(it) for _ in range(16)))
        return counts


class TestBrowsers:
    async def test_pages_of_listed_origins_may_call_and_others_not(self, file):
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with (
            running_router(api_keys_file=file, cors_origins=("https://ours.example",)) as stack,
            httpx.AsyncClient(base_url=stack.url) as plain,
        ):
            ours = await plain.options("/v1/completions", headers={"Origin": "https://ours.example", **preflight})
            theirs = await plain.options("/v1/completions", headers={"Origin": "https://theirs.example", **preflight})
        assert ours.headers["Access-Control-Allow-Origin"] == "https://ours.example"
        assert "Access-Control-Allow-Origin" not in theirs.headers

    async def test_by_default_no_page_may(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            answer = await plain.options("/v1/completions", headers={"Origin": "https://ours.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers
