"""Whatever comes in, the answer is a 4xx in OpenAI's shape, and the next request works."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.router.entrypoints.openai.chat_request import ChatBody
from services.router.entrypoints.openai.completion_request import CompletionBody
from services.router.entrypoints.openai.route_request import RouteBody

pytestmark = pytest.mark.asyncio(loop_scope="module")

_JSON = {"Content-Type": "application/json"}
_POST_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/route")
_BODIES = {
    "empty": b"",
    "not json": b"hello",
    "cut json": b'{"model": "auto", "prompt": "x',
    "an array": b"[]",
    "a number": b"12",
    "null": b"null",
    "a text": b'"auto"',
    "invalid utf-8": b'{"model": "auto", "prompt": "\xff\xfe"}',
    "utf-16": '{"model": "auto", "prompt": 3}'.encode("utf-16"),
    "a surrogate in a key": rb'{"\ud800": 1}',
    "deep arrays": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "deep metadata, no prompt": b'{"metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a huge integer": b'{"model": "auto", "prompt": "x", "max_tokens": ' + b"9" * 10_000 + b"}",
    "not a number": b'{"model": "auto", "prompt": "x", "temperature": NaN}',
    "infinite": b'{"model": "auto", "prompt": "x", "temperature": Infinity}',
    "wrong types": b'{"model": 1, "prompt": {}, "messages": "x", "text": []}',
    "no messages": b'{"model": "auto", "messages": [], "prompt": []}',
    "too long": b'{"model": "auto", "prompt": "' + b"x" * 300_000 + b'"}',
}


async def _post(stack, path, content, headers=_JSON):
    async with httpx.AsyncClient(base_url=stack.url) as plain:
        return await plain.post(path, content=content, headers=headers)


def _is_refusal(answer) -> bool:
    error = answer.json()["error"]
    return 400 <= answer.status_code < 500 and bool(error["message"]) and bool(error["code"])


class TestBodies:
    @pytest.mark.parametrize("path", _POST_ROUTES)
    @pytest.mark.parametrize("name", _BODIES)
    async def test_garbage_is_refused(self, stack, name, path):
        answer = await _post(stack, path, _BODIES[name])
        assert _is_refusal(answer), answer.text

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", rb'{"model": "base", "prompt": "\ud800"}'),
            ("/v1/completions", rb'{"model": "base", "prompt": ["\ud800"]}'),
            ("/v1/completions", rb'{"model": "base", "prompt": "x", "stop": "\udfff"}'),
            ("/v1/completions", rb'{"model": "base", "prompt": "x", "stop": ["\udfff"]}'),
            ("/v1/completions", rb'{"model": "\udfff", "prompt": "x"}'),
            ("/v1/completions", rb'{"model": "auto", "prompt": "x", "hilora": {"exclude_adapters": ["\ud800"]}}'),
            ("/v1/chat/completions", rb'{"model": "base", "messages": [{"role": "user", "content": "\udfff"}]}'),
            (
                "/v1/chat/completions",
                rb'{"model": "base", "messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}',
            ),
            ("/v1/route", rb'{"text": "\ud800"}'),
            ("/v1/route", rb'{"prompt": "a\ud800b"}'),
            ("/v1/route", rb'{"messages": [{"role": "user", "content": "\udfff"}]}'),
        ],
    )
    async def test_half_a_character_is_refused_wherever_it_stands(self, stack, path, body):
        answer = await _post(stack, path, body)
        assert _is_refusal(answer), answer.text
        assert not stack.worker.service.requests

    async def test_what_changes_no_token_may_hold_anything(self, stack):
        answer = await _post(stack, "/v1/completions", rb'{"model": "base", "prompt": "x", "user": "\ud800"}')
        assert answer.status_code == 200

    async def test_a_long_body_is_413_with_and_without_a_length(self, stack):
        async def pieces():
            for _ in range(300):
                yield b"x" * 1024

        for content in (b"x" * 300_000, pieces()):
            answer = await _post(stack, "/v1/completions", content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"

    async def test_nul_and_control_characters_are_text(self, stack):
        prompt = "a\x00b\x01\u2028\U0001f600"
        answer = await _post(stack, "/v1/completions", json.dumps({"model": "auto", "prompt": prompt}).encode())
        assert answer.status_code == 200
        assert stack.worker.service.requests[-1].prompt == prompt

    async def test_a_model_name_full_of_controls_is_not_found(self, stack):
        body = json.dumps({"model": "a\r\nX-Evil: 1\x00", "prompt": "x"}).encode()
        answer = await _post(stack, "/v1/completions", body)
        assert answer.status_code == 404
        assert "X-Evil" not in answer.headers

    async def test_a_body_that_is_not_called_json_is_refused_with_a_remedy(self, stack):
        answer = await _post(
            stack, "/v1/completions", b'{"model": "auto", "prompt": "x"}', {"Content-Type": "text/plain"}
        )
        assert answer.status_code == 400
        assert "application/json" in answer.json()["error"]["remedy"]

    async def test_a_strange_model_path_is_not_found(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            for path in ("/v1/models/..%2f..%2fetc", "/v1/models/%00", "/v1/models/%ff", "/v1/models/"):
                assert (await plain.get(path)).status_code == 404


# Without excluded categories the texts hold halves of surrogate pairs as well.
_TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)
_FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *RouteBody.model_fields})


class TestProperty:
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(fields=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=5), path=st.sampled_from(_POST_ROUTES))
    async def test_no_json_object_makes_the_server_fail(self, stack, fields, path):
        valid = {"/v1/completions": {"model": "base", "prompt": "x"}, "/v1/route": {"text": "x"}}.get(
            path, {"model": "base", "messages": [{"role": "user", "content": "x"}]}
        )
        answer = await _post(stack, path, json.dumps(valid | fields).encode())
        assert answer.status_code == 200 or _is_refusal(answer), answer.text
