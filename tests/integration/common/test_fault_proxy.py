"""The fault proxy does to a connection what it says."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.builders.patience import patient
from tests.fakes.fault_proxy import FaultProxy


@pytest.fixture
async def echo():
    """A server that gives back what it gets."""

    async def answer(reader, writer):
        try:
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except OSError:
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
async def proxy(echo):
    async with FaultProxy(echo) as proxy:
        yield proxy


@pytest.fixture
async def line(proxy):
    """A connection through the proxy that was used already."""
    reader, writer = await connect(proxy)
    assert await exchange(reader, writer, b"hello") == b"hello"
    yield reader, writer
    writer.transport.abort()


async def connect(proxy):
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def exchange(reader, writer, content, *, seconds=5.0):
    writer.write(content)
    async with asyncio.timeout(patient(seconds)):
        return await reader.readexactly(len(content))


class TestWhole:
    async def test_bytes_pass_in_both_directions(self, line):
        content = bytes(range(256)) * 4096
        writing = asyncio.create_task(exchange(*line, content))
        assert await writing == content

    async def test_an_end_is_passed_on(self, line, proxy):
        reader, writer = line
        writer.write_eof()
        async with asyncio.timeout(patient(5)):
            assert await reader.read() == b""
            while proxy.num_open:  # noqa: ASYNC110  (the relay has no event for it)
                await asyncio.sleep(0.01)


class TestDelay:
    async def test_every_piece_is_late_in_both_directions(self, line, proxy):
        proxy.delay(0.1)
        started = time.monotonic()
        await exchange(*line, b"x")
        assert time.monotonic() - started >= 0.2

        proxy.heal()
        started = time.monotonic()
        await exchange(*line, b"x")
        assert time.monotonic() - started < patient(0.1)


class TestThrottle:
    async def test_a_connection_gets_so_many_bytes_a_second(self, line, proxy):
        proxy.throttle(20_000)
        started = time.monotonic()
        assert await exchange(*line, b"x" * 10_000) == b"x" * 10_000
        assert time.monotonic() - started >= 0.45


class TestBlackHole:
    async def test_nothing_arrives_until_it_ends_and_then_everything_does(self, line, proxy):
        proxy.swallow()
        reader, writer = line
        writer.write(b"lost?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        assert proxy.num_open == 1

        proxy.heal()

        async with asyncio.timeout(patient(5)):
            assert await reader.readexactly(5) == b"lost?"

    async def test_new_connections_are_accepted_and_hear_nothing(self, proxy):
        proxy.swallow()
        reader, writer = await connect(proxy)
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        writer.transport.abort()


class TestCut:
    async def test_open_connections_are_reset_and_new_ones_work(self, line, proxy):
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(patient(5)):
                await line[0].readexactly(1)
        reader, writer = await connect(proxy)
        assert await exchange(reader, writer, b"again") == b"again"
        writer.close()


class TestRefuse:
    async def test_nobody_listens_until_it_accepts_again_on_the_same_port(self, line, proxy):
        address = proxy.address
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(patient(5)):
                await line[0].readexactly(1)
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        assert proxy.num_open == 0

        await proxy.accept()

        assert proxy.address == address
        reader, writer = await connect(proxy)
        assert await exchange(reader, writer, b"back") == b"back"
        writer.close()

    async def test_a_target_that_is_away_looks_like_nobody(self):
        async with FaultProxy("127.0.0.1:9") as proxy:
            reader, writer = await connect(proxy)
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(patient(5)):
                    await reader.readexactly(1)
            writer.close()
