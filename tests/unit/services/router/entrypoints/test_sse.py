from __future__ import annotations

import json

import pytest
from starlette.requests import ClientDisconnect

from hilora.errors import QueueFull
from services.router.entrypoints.sse import DONE, EventStreamResponse, encode_event


async def _send_all(response, *, scope=None):
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "state": {}} if scope is None else scope
    await response(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent), scope


async def _work():
    yield "unused"


async def _chunks(*objects, error=None):
    for chunk in objects:
        yield chunk
    if error is not None:
        raise error


class TestEncoding:
    def test_an_event_is_one_line_of_json(self):
        event = encode_event({"text": "a\nb\u2028é"})
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
        assert json.loads(event.removeprefix(b"data: ")) == {"text": "a\nb\u2028é"}


class TestEnds:
    async def test_a_good_end_is_done(self):
        body, scope = await _send_all(EventStreamResponse(_chunks({"a": 1}), work=_work(), headers={}))
        assert body == b'data: {"a":1}\n\n' + DONE
        assert "has_failed" not in scope["state"]

    async def test_our_error_is_an_event_and_no_done_follows(self):
        response = EventStreamResponse(_chunks({"a": 1}, error=QueueFull("full")), work=_work(), headers={})
        body, scope = await _send_all(response)
        last = body.strip().split(b"\n\n")[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "queue_full"
        assert DONE not in body
        assert scope["state"]["has_failed"]

    async def test_a_defect_shows_nothing_of_itself(self):
        response = EventStreamResponse(_chunks(error=KeyError("secret")), work=_work(), headers={})
        body, scope = await _send_all(response)
        assert b"internal_error" in body
        assert b"secret" not in body
        assert scope["state"]["has_failed"]

    async def test_the_work_is_closed_although_no_chunk_was_ever_asked_for(self):
        is_closed = False

        async def work():
            nonlocal is_closed
            try:
                yield "route"
                yield "more"
            finally:
                is_closed = True

        begun = work()
        await anext(begun)
        response = EventStreamResponse(_chunks({"a": 1}), work=begun, headers={})

        async def send(message):
            raise OSError("the client is gone")

        async def receive():
            return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
        assert is_closed
