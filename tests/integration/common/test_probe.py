"""The health check of the images against real servers."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.common.http_server import HttpServer
from services.common.probe import main, probe
from services.common.rpc_server import LIVENESS_SERVICE_NAME, RpcServer


@pytest.fixture
async def rpc_server():
    server = RpcServer(host="127.0.0.1", port=0, register=[], service_names=["a.Service"])
    await server.start()
    yield server
    await server.stop(grace_seconds=0)


@pytest.fixture
async def http_server():
    async def ready(request):
        return PlainTextResponse("ready")

    async def waiting(request):
        return PlainTextResponse("no workers", status_code=503)

    app = Starlette(routes=[Route("/readyz", ready), Route("/waiting", waiting)])
    server = HttpServer(app=app, host="127.0.0.1", port=0)
    await server.start()
    yield server
    await server.stop(grace_seconds=0)


class TestGrpc:
    async def test_a_service_is_healthy_once_it_serves(self, rpc_server):
        target = f"grpc://{rpc_server.address}"
        before = await asyncio.to_thread(probe, target)
        await rpc_server.set_serving(is_serving=True)

        assert before == "NOT_SERVING"
        assert await asyncio.to_thread(probe, target) is None
        assert await asyncio.to_thread(probe, f"{target}/a.Service") is None

    async def test_a_process_that_waits_is_alive(self, rpc_server):
        target = f"grpc://{rpc_server.address}/{LIVENESS_SERVICE_NAME}"
        waiting = await asyncio.to_thread(probe, target)
        await rpc_server.set_alive(is_alive=False)

        assert waiting is None
        assert await asyncio.to_thread(probe, target) == "NOT_SERVING"

    async def test_an_unknown_service_is_not_healthy(self, rpc_server):
        answer = await asyncio.to_thread(probe, f"grpc://{rpc_server.address}/nobody")

        assert answer == "no answer: NOT_FOUND"

    def test_nobody_listening_is_said(self):
        assert probe("grpc://127.0.0.1:1", timeout_seconds=1) == "no answer: UNAVAILABLE"


class TestHttp:
    async def test_200_is_healthy_and_another_status_says_why(self, http_server):
        url = f"http://{http_server.address}"

        assert await asyncio.to_thread(probe, f"{url}/readyz") is None
        assert await asyncio.to_thread(probe, f"{url}/waiting") == "HTTP 503: no workers"

    def test_nobody_listening_is_said(self):
        assert "refused" in (probe("http://127.0.0.1:1/readyz") or "")


class TestStatus:
    async def test_it_is_the_exit_status(self, rpc_server):
        target = f"grpc://{rpc_server.address}"
        assert await asyncio.to_thread(main, [target]) == 1
        await rpc_server.set_serving(is_serving=True)
        assert await asyncio.to_thread(main, [target]) == 0

    @pytest.mark.parametrize("arguments", [[], ["ftp://host/file"], ["grpc://host-without-port"]])
    def test_misuse_is_2(self, arguments):
        assert main(arguments) == 2
