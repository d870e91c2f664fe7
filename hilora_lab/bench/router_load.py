"""Clients of an OpenAI endpoint, in a process of their own: `python -m hilora_lab.bench.router_load`.

Each stream is a connection that asks, reads to the end, and asks again. It reads bytes rather than JSON, because a
client that is slow would be measured as the server: tokens are the places where `ANSWER_WORD` stands.

Standard input takes a `LoadOrder` a line, standard output gives what came of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from hilora_lab.bench.router_backend import ANSWER_WORD
from hilora_lab.bench.router_speech import answer_commands, say
from hilora_lab.bench.router_texts import task_text
from services.common import event_loop

_WORD = ANSWER_WORD.strip().encode()
_END = b"0\r\n\r\n"
"""The last chunk of a body in chunks (RFC 9112, 7.1)."""
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOrder:
    """What to ask of whom, as JSON."""

    port: int
    """On 127.0.0.1."""
    model: str
    num_streams: int
    max_tokens: int
    seconds: float
    """No request begins later than that."""
    max_requests: int | None = None
    """Or once so many have."""
    num_texts: int | None = None
    """So many texts, again and again; None for a new one each time."""
    num_tasks: int = 1000
    spread_seconds: float = 0.0
    """Streams begin at random moments of so long a time: all at once would queue for ever behind each other."""
    first_number: int = 0
    """Texts of different orders differ in their numbers."""


class _Stream(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._carry = b""
        self._status = b""
        self.first_at: float | None = None
        self.num_tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed"))

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> None:
        """Send a request; returns at the end of the answer. Raises ConnectionError, TimeoutError."""
        if self._transport is None:
            raise ConnectionError("closed before the request")
        self._carry, self._status = b"", b""
        self.first_at, self.num_tokens = None, 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await self._done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._done is None or self._done.done():
            return
        if not self._status:
            self._status = data[9:12]
            if self._status != b"200":
                self._done.set_exception(ConnectionError(f"status {self._status.decode(errors='replace')}"))
                self.close()
                return
        text = self._carry + data
        found = text.count(_WORD)
        if found:
            self.num_tokens += found
            if self.first_at is None:
                self.first_at = now
        # A word, or the end, may come in two pieces; a whole word must not be counted twice.
        keep = len(_WORD) - 1
        self._carry = text[-keep:]
        if text.endswith(_END):
            self._done.set_result(None)


@dataclass(kw_only=True, slots=True)
class _Tally:
    """What came of an order."""

    ttfts: list[float] = field(default_factory=list[float])
    e2es: list[float] = field(default_factory=list[float])
    num_begun: int = 0
    num_answered: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])


async def run_load(order: LoadOrder) -> dict[str, Any]:
    """Ask as ordered; latencies in seconds, without each stream's first request, which opens its connection."""
    tally = _Tally()
    rng = random.Random(order.first_number)
    started = time.perf_counter()
    until = started + order.seconds + order.spread_seconds
    offsets = [rng.uniform(0.0, order.spread_seconds) for _ in range(order.num_streams)]
    await asyncio.gather(*(_run_stream(order, tally, offset, until) for offset in offsets))
    return {
        "ttfts": [round(value, 6) for value in tally.ttfts],
        "e2es": [round(value, 6) for value in tally.e2es],
        "num_answered": tally.num_answered,
        "failures": dict(tally.failures),
        "seconds": time.perf_counter() - started,
    }


async def _run_stream(order: LoadOrder, tally: _Tally, offset: float, until: float) -> None:
    await asyncio.sleep(offset)
    stream: _Stream | None = None
    loop = asyncio.get_running_loop()
    is_first = True
    while time.perf_counter() < until and (order.max_requests is None or tally.num_begun < order.max_requests):
        request = _request(order, tally.num_begun)
        tally.num_begun += 1
        try:
            if stream is None or not stream.is_open:
                _, stream = await loop.create_connection(_Stream, "127.0.0.1", order.port)
            started = time.perf_counter()
            await stream.ask(request)
            ended = time.perf_counter()
            if stream.num_tokens != order.max_tokens or stream.first_at is None:
                raise ConnectionError(f"{stream.num_tokens} of {order.max_tokens} tokens")
        except (OSError, TimeoutError) as error:
            tally.failures[str(error) or type(error).__name__] += 1
            if stream is not None:
                stream.close()
                stream = None
            await asyncio.sleep(0.1)
            continue
        tally.num_answered += 1
        if is_first:
            is_first = False
            continue
        tally.ttfts.append(stream.first_at - started)
        tally.e2es.append(ended - started)
    if stream is not None:
        stream.close()


def _request(order: LoadOrder, number: int) -> bytes:
    place = order.first_number + (number if order.num_texts is None else number % order.num_texts)
    body = json.dumps(
        {
            "model": order.model,
            "messages": [{"role": "user", "content": task_text(place % order.num_tasks, 1 + place)}],
            "stream": True,
            "max_tokens": order.max_tokens,
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _main() -> None:
    async def obey(command: dict[str, Any]) -> dict[str, Any]:
        return await run_load(LoadOrder(**command))

    say({"is_ready": True})
    await answer_commands(obey)


if __name__ == "__main__":
    event_loop.run(_main())
