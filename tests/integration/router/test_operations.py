"""Probes and figures of a running router."""

from __future__ import annotations

import re
import statistics
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc_client import open_channel
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.fakes.router_encoder import HashEncoder
from tests.fakes.router_stack import eventually, running_router


async def _get(address, path):
    async with httpx.AsyncClient(base_url=f"http://{address}") as plain:
        return await plain.get(path)


async def _health(address) -> int:
    async with open_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return answer.status


class TestReadiness:
    async def test_a_router_alone_lives_but_is_not_ready_and_says_why(self):
        router = build_router(
            RouterSettings(rpc_port=0, rest_port=0, registry_address="127.0.0.1:1", worker_addresses=("127.0.0.1:1",)),
            load_encoder=HashEncoder,
        )
        await router.start()
        try:
            assert (await _get(router.rest_address, "/healthz")).status_code == 200
            ready = await _get(router.rest_address, "/readyz")
            assert ready.status_code == 503
            assert ready.json()["missing"] == ["catalog", "workers"]
            models = await _get(router.rest_address, "/v1/models")
            assert (models.status_code, models.json()["error"]["code"]) == (503, "catalog_not_loaded")
            assert await _health(router.rpc_address) == health_pb2.HealthCheckResponse.NOT_SERVING
        finally:
            await router.stop(grace_seconds=0)

    async def test_with_all_parts_it_is_ready_over_both_doors(self):
        async with running_router() as stack:
            ready = await _get(stack.router.rest_address, "/readyz")
            assert ready.status_code == 200
            assert ready.json()["parts"]["encoder"] == "hash:1"
            async with open_channel(stack.router.rpc_address) as channel:
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                async for answer in watch:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break

    async def test_a_worker_behind_the_catalogue_is_missing(self):
        async with running_router() as stack:
            stack.add("sums", revision="b" * 64, workers_follow=False)
            await eventually(lambda: not stack.router.readiness().can_generate)
            assert (await _get(stack.router.rest_address, "/readyz")).json()["missing"] == ["workers"]
            stack.workers_catch_up()
            await stack.ready()

    async def test_a_registry_outage_is_said_but_does_not_unready(self):
        async with running_router() as stack:
            await stack.registry.stop()
            await eventually(lambda: stack.router.readiness().parts["registry"] == "away")
            assert stack.router.readiness().can_generate


class TestStart:
    async def test_a_taken_port_is_an_error_and_leaves_nothing_behind(self):
        async with running_router() as stack:
            taken = int(stack.router.rest_address.rpartition(":")[2])
            second = build_router(RouterSettings(rpc_port=0, rest_port=taken), load_encoder=HashEncoder)
            with pytest.raises(OSError, match="in use"):
                await second.start()

    async def test_an_encoder_that_cannot_load_is_an_error(self):
        def load():
            raise ValueError("no such encoder")

        router = build_router(RouterSettings(rpc_port=0, rest_port=0), load_encoder=load)
        with pytest.raises(ValueError, match="no such encoder"):
            await router.start()
        async with grpc.aio.insecure_channel(router.rpc_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)

    async def test_without_its_own_port_the_application_can_be_served_elsewhere(self):
        router = build_router(RouterSettings(rpc_port=0), load_encoder=HashEncoder, opens_http=False)
        with pytest.raises(ValueError, match="no HTTP port"):
            _ = router.rest_address
        transport = httpx.ASGITransport(app=router.rest_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as plain:
            assert (await plain.get("/healthz")).json() == {"status": "ok"}


class TestMetrics:
    async def test_requests_are_counted_by_endpoint_and_outcome(self):
        async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            await plain.post("/v1/completions", json={"model": "auto", "prompt": "x"})
            await plain.post("/v1/completions", json={"model": "auto", "prompt": "x", "stream": True})
            await plain.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
            await plain.post("/v1/route", json={"text": "x"})
            await plain.get("/v1/models/poems")
            await plain.get("/v1/nothing/at/all")
            text = (await plain.get("/metrics")).text
        total = "hilora_router_requests_total"
        assert f'{total}{{endpoint="/v1/completions",outcome="ok"}} 2.0' in text
        assert f'{total}{{endpoint="/v1/completions",outcome="refused"}} 1.0' in text
        assert f'{total}{{endpoint="/v1/route",outcome="ok"}} 1.0' in text
        assert f'{total}{{endpoint="/v1/models",outcome="ok"}} 1.0' in text
        assert "nothing" not in text
        assert "hilora_router_encode_seconds_count 3.0" in text
        assert 'hilora_router_ttft_seconds_count{endpoint="/v1/completions"} 1.0' in text
        assert "hilora_router_catalog_generation 3.0" in text
        assert "hilora_router_adapters 3.0" in text
        assert "hilora_router_workers_live 1.0" in text
        # No adapter's name is a label.
        assert "poems" not in text

    async def test_waits_within_an_answer_and_the_state_of_its_surroundings_are_shown(self):
        async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            await plain.post("/v1/completions", json={"model": "auto", "prompt": "x", "n": 2})
            healthy = (await plain.get("/metrics")).text
            for worker in stack.router._workers.roster:
                for _ in range(10):
                    worker.circuit.begin().failed()
            await stack.registry.stop()
            await eventually(lambda: stack.router.readiness().parts["registry"] == "away")
            broken = (await plain.get("/metrics")).text
        num_texts = int(re.search(r"hilora_router_text_gap_seconds_count (\d+)", healthy)[1])
        num_tokens = int(re.search(r'hilora_router_tokens_total{kind="completion"} (\d+)', healthy)[1])
        # Each answer has one wait fewer than pieces of text.
        assert 0 < num_texts <= num_tokens - 2
        assert 'hilora_router_circuits{state="closed"} 1.0' in healthy
        assert 'hilora_router_circuits{state="open"} 1.0' in broken
        assert "hilora_router_catalog_following 1.0" in healthy
        assert "hilora_router_catalog_following 0.0" in broken


class TestLatency:
    async def test_an_answer_does_not_wait_for_the_client_s_delayed_acknowledgement(self):
        # Linux delays acknowledgements by 40 ms; an answer of two writes waits for one if Nagle's algorithm is on.
        async with running_router() as stack, httpx.AsyncClient(base_url=stack.url) as plain:
            seconds = []
            for _ in range(31):
                started = time.perf_counter()
                await plain.get("/healthz")
                seconds.append(time.perf_counter() - started)
        assert statistics.median(seconds) < 0.03
