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


@pytest.fixture
async def server():
    server = HttpServer(app=app, host="127.0.0.1", port=0)
    await server.start()
    yield server
    await server.stop(grace_seconds=1)


async def exchanged(server: HttpServer, *pieces: bytes) -> bytes:
    """What the server answers to bytes, until it closes or for a second."""
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answered = b""
    try:
        async with asyncio.timeout(1):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            while more := await reader.read(1 << 16):
                answered += more
    except (TimeoutError, ConnectionError):
        return answered
    finally:
        writer.close()
    return answered + b"<closed>"


HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"


class TestHeads:
    """The parser bounds nothing; the protocol does."""

    async def test_one_of_an_ordinary_size_is_taken(self, server):
        answered = await exchanged(server, HEAD, b"X-Many: " + b"a" * 60_000 + b"\r\n", b"\r\n")

        assert answered.startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize(
        "pieces",
        [
            (HEAD + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n",),
            (HEAD + b"X: y\r\n" * 20_000 + b"\r\n",),
            (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",),
            (HEAD, b"X-Endless: ", *[b"a" * 8_000] * 10),
            (HEAD + b"\r\n" + HEAD, b"X-Endless: ", *[b"a" * 8_000] * 10),
        ],
        ids=["one header", "many headers", "the path", "a header without an end", "the second request's"],
    )
    async def test_a_longer_one_is_refused(self, server, pieces):
        answered = await exchanged(server, *pieces)

        assert b"HTTP/1.1 400" in answered
        assert answered.endswith(b"<closed>")

    @pytest.mark.parametrize("is_split", [True, False])
    async def test_a_body_may_be_longer(self, server, is_split):
        pieces = HEAD + b"Content-Length: 120000\r\n\r\n", b"a" * 120_000
        answered = await exchanged(server, *(pieces if is_split else [b"".join(pieces)]), HEAD + b"\r\n")

        assert answered.count(b"HTTP/1.1 200") == 2
        assert b"HTTP/1.1 400" not in answered

    async def test_what_is_no_request_is_refused(self, server):
        assert b"HTTP/1.1 400" in await exchanged(server, b"\x16\x03\x01\x02\x00\x01\x00")
