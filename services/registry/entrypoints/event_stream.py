"""Server-sent events of the REST door (WHATWG HTML, 9.2), which end when the client leaves or the service stops.

A comment is sent where nothing happened for a while, so that proxies and clients can tell silence from a dead peer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hilora.errors import HiloraError
from services.common.errors import openai_body
from services.common.log import get_logger
from services.common.tasks import end_tasks

_log = get_logger(__name__)

Item = TypeVar("Item")

_HEARTBEAT = b": heartbeat\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    event: str
    """What kind of event it is."""
    data: Mapping[str, Any]
    event_id: str | None = None
    """What a client sends back as `Last-Event-ID` to go on after it."""

    def encode(self) -> bytes:
        """The event as bytes. Its data is one line of ASCII, also for clients that break lines where Unicode does."""
        identity = f"id: {self.event_id}\n" if self.event_id is not None else ""
        text = json.dumps(self.data, separators=(",", ":"))
        return f"event: {self.event}\n{identity}data: {text}\n\n".encode()


class EventStreams:
    """Makes streams and can end them all: a service that stops does not wait for those who only listen."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every stream, and each that is opened from now on."""
        self._closing.set()

    def answer(self, events: AsyncGenerator[ServerEvent | None]) -> StreamingResponse:
        """The response that sends events; `None` becomes a heartbeat."""
        return _EventResponse(events, self._closing)


class _EventResponse(StreamingResponse):
    """Closes what the events are made from in every case, also if it was never begun."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[ServerEvent | None], closing: asyncio.Event) -> None:
        super().__init__(self._chunks(events, closing), headers=_HEADERS)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)

    async def _chunks(self, events: AsyncIterator[ServerEvent | None], closing: asyncio.Event) -> AsyncGenerator[bytes]:
        try:
            async for event in until(events, closing):
                yield _HEARTBEAT if event is None else event.encode()
        except HiloraError as error:
            # The status is out already: the stream itself has to say that it broke.
            _log.warning("stream_failed", code=error.code, message=error.message)
            yield ServerEvent(event="error", data=openai_body(error)).encode()


async def until(items: AsyncIterator[Item], closing: asyncio.Event) -> AsyncGenerator[Item]:
    """Items as they come, until there are no more or an event is set."""
    waiting = asyncio.create_task(closing.wait())
    arriving: asyncio.Future[Item] | None = None
    try:
        while not closing.is_set():
            arriving = asyncio.ensure_future(anext(items))
            await asyncio.wait({arriving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done():
                return
            try:
                item = arriving.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        waiting.cancel()
        if arriving is not None and not arriving.done():
            # Its iterator must have let go before it can be closed.
            await end_tasks(arriving)
