"""The cap on heads, fed by hand: how the bytes of a request are cut into reads is the network's to say."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.server import ServerState

from services.common.http_protocol import MAX_HEAD_BYTES, CappedHttpToolsProtocol

BODY = b"x" * (2 * MAX_HEAD_BYTES)
HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class FakeTransport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written = b""
        self._is_closed = False

    def write(self, data):
        self.written += data

    def close(self):
        self._is_closed = True

    def is_closing(self):
        return self._is_closed

    def pause_reading(self):
        """The protocol asks for it with a large body; nothing reads here."""

    def resume_reading(self):
        """See above."""

    def set_protocol(self, protocol):
        """Nothing changes protocols here."""


async def app(scope, receive, send):
    length = 0
    while True:
        message = await receive()
        length += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % length})


@pytest.fixture
async def connection():
    config = uvicorn.Config(app, log_config=None, http=CappedHttpToolsProtocol, ws="none")
    config.load()
    protocol = CappedHttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    transport = FakeTransport()
    protocol.connection_made(transport)
    yield protocol, transport
    protocol.connection_lost(None)


async def answers(transport, number):
    async with asyncio.timeout(5):
        while transport.written.count(b"HTTP/1.1 ") < number:  # noqa: ASYNC110  (the protocol knows no event)
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    return transport.written


async def test_a_request_whose_body_comes_with_its_head_is_answered(connection):
    protocol, transport = connection

    protocol.data_received(HEAD + BODY)

    assert (await answers(transport, 1)).startswith(b"HTTP/1.1 200 ")
    assert not transport.is_closing()


async def test_so_is_the_next_one_on_the_same_connection(connection):
    protocol, transport = connection
    for number in (1, 2, 3):
        protocol.data_received(HEAD + BODY)
        written = await answers(transport, number)

    assert written.count(b"HTTP/1.1 200 ") == 3


async def test_a_body_cut_anywhere_is_answered(connection):
    protocol, transport = connection
    request = HEAD + BODY
    for begin in range(0, len(request), 50_000):
        protocol.data_received(request[begin : begin + 50_000])

    assert (await answers(transport, 1)).startswith(b"HTTP/1.1 200 ")


async def test_a_head_without_end_is_refused(connection):
    protocol, transport = connection
    protocol.data_received(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(3):
        protocol.data_received(b"x" * (MAX_HEAD_BYTES // 2))

    assert (await answers(transport, 1)).startswith(b"HTTP/1.1 400 ")
    assert transport.is_closing()
