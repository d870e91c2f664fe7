"""Server-sent events as OpenAI's clients read them (WHATWG HTML, 9.2: `data:` lines ended by an empty line).

A stream that ends well ends with `[DONE]`. A stream that breaks ends with an event whose data has an `error`, and
without `[DONE]`, so that no client takes half an answer for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hilora.errors import HiloraError
from services.common.errors import openai_body
from services.common.log import get_logger

_log = get_logger(__name__)

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: `json.dumps` with options makes one for each event."""

DONE = b"data: [DONE]\n\n"
"""The last event of a complete stream."""


def encode_event(data: Mapping[str, Any]) -> bytes:
    """One event. JSON escapes line breaks, so the data is one line."""
    return b"data: " + _JSON.encode(data).encode() + b"\n\n"


class EventStreamResponse(StreamingResponse):
    """Sends chunks as events; ends the work behind them in every case, also when the client leaves early.

    Args:
        chunks: JSON objects.
        work: what the chunks are made from. It is closed apart from them, because closing a generator that was
            never begun closes nothing it holds.
        headers: further response headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[Mapping[str, Any]], *, work: AsyncGenerator[Any], headers: Mapping[str, str]
    ) -> None:
        # The last header keeps proxies from collecting a stream before they pass it on.
        super().__init__(
            self._events(chunks), headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._chunks = chunks
        self._work = work
        self.has_failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with aclosing(self._work), aclosing(self._chunks):
            await super().__call__(scope, receive, send)
        if self.has_failed:
            scope.setdefault("state", {})["has_failed"] = True

    async def _events(self, chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield encode_event(chunk)
        except HiloraError as error:
            self.has_failed = True
            _log.warning("stream_failed", code=error.code, message=error.message)
            yield encode_event(openai_body(error))
        except Exception:  # the status is out already: the stream itself has to say that it broke
            self.has_failed = True
            _log.exception("stream_failed")
            yield encode_event(openai_body(HiloraError("The server failed in the middle of the answer.")))
        else:
            yield DONE
