from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from services.common.http_server import HttpServer


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


class TestHttpServer:
    async def test_serves_on_the_port_it_names(self):
        server = HttpServer(app=app, host="127.0.0.1", port=0)
        await server.start()

        async with httpx.AsyncClient() as client:
            response = await client.get(f"http://{server.address}/")
        await server.stop(grace_seconds=1)

        assert response.text == "done"

    async def test_a_response_in_flight_finishes_on_stop(self):
        server = HttpServer(app=app, host="127.0.0.1", port=0)
        await server.start()
        async with httpx.AsyncClient() as client:
            request = asyncio.create_task(client.get(f"http://{server.address}/slow"))
            await asyncio.sleep(0.1)

            await server.stop(grace_seconds=5)

            assert (await request).text == "done"

    async def test_a_taken_port_is_an_error(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            server = HttpServer(app=app, host="127.0.0.1", port=taken.getsockname()[1])

            with pytest.raises(OSError, match="in use"):
                await server.start()
