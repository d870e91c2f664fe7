"""A TCP relay between two parts of the system that breaks the network on request.

What it does is decided byte by byte, so a fault also meets connections that were there before it. Bytes that were held
up by a black hole arrive when it ends, as TCP's do after a partition.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self

_CHUNK_BYTES = 64 * 1024
_THROTTLED_PIECES_PER_SECOND = 20
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST instead of FIN."""


class FaultProxy:
    """Relays 127.0.0.1:port to a target; an asynchronous context manager. Whole at first.

    Args:
        target: `host:port` of the real server; it need not listen yet.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self.num_accepted = 0
        """Connections since the start."""

    @property
    def address(self) -> str:
        """`host:port`; the same after `refuse`."""
        return f"127.0.0.1:{self._port}"

    @property
    def num_open(self) -> int:
        """Connections at this moment."""
        return len(self._relays)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.heal()
        await self.refuse()

    def heal(self) -> None:
        """Relay everything at once again. After `refuse`, see `accept`."""
        self._delay_seconds = 0.0
        self._bytes_per_second = None
        self._passes.set()

    def delay(self, seconds: float) -> None:
        """Hold every piece up for so long, in each direction."""
        self._delay_seconds = seconds

    def throttle(self, bytes_per_second: float) -> None:
        """Let each connection's directions have so many bytes a second."""
        self._bytes_per_second = bytes_per_second

    def swallow(self) -> None:
        """A black hole: connections stay open, and are accepted, but nothing arrives any more."""
        self._passes.clear()

    def cut(self) -> None:
        """Reset every connection that is open; new ones are accepted."""
        for writer in tuple(self._writers):
            _reset(writer)

    async def refuse(self) -> None:
        """Reset every connection and stop listening, as a host does whose process is gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for relay in tuple(self._relays):
            relay.cancel()
        if self._relays:
            await asyncio.wait(self._relays)

    async def accept(self) -> None:
        """Listen again after `refuse`, on the same port."""
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        relay = asyncio.current_task()
        assert relay is not None, "a server's callback runs in a task"
        self._relays.add(relay)
        ends = [writer]
        self._writers.add(writer)
        try:
            # `refuse` cancels; a callback of asyncio's server that ends cancelled is reported as an error.
            with suppress(OSError, asyncio.CancelledError):
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                ends.append(far_writer)
                self._writers.add(far_writer)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer))
                    group.create_task(self._pump(far_reader, writer))
        finally:
            for end in ends:
                self._writers.discard(end)
                # A connection that cannot be passed on looks like one to a host where nobody listens.
                if len(ends) == 1:
                    _reset(end)
                end.close()
            self._relays.discard(relay)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its source ends or either side is gone."""
        with suppress(OSError):
            while piece := await reader.read(self._piece_bytes()):
                if self._bytes_per_second is not None:
                    await asyncio.sleep(len(piece) / self._bytes_per_second)
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._passes.wait()
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            return
        # The other direction's reader waits for a peer that will not speak again.
        _reset(writer)

    def _piece_bytes(self) -> int:
        if self._bytes_per_second is None:
            return _CHUNK_BYTES
        return max(1, min(_CHUNK_BYTES, int(self._bytes_per_second / _THROTTLED_PIECES_PER_SECOND)))


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
