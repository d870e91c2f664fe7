"""Errors as OpenAI's own client reads them."""

from __future__ import annotations

import httpx
import openai
import pytest

from hilora.errors import GenerationFailed, QueueFull, Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CHAT_CASES = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
}
_COMPLETION_CASES = {"best_of": 3, "suffix": "!"}


class TestUnsupported:
    @pytest.mark.parametrize("name", _CHAT_CASES)
    async def test_chat_refuses_what_it_would_have_to_ignore(self, client, stack, name):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "x"}], extra_body={name: _CHAT_CASES[name]}
            )
        assert (raised.value.code, raised.value.param) == ("unsupported_parameter", name)
        assert not stack.worker.service.requests

    @pytest.mark.parametrize("name", _COMPLETION_CASES)
    async def test_completions_refuse_what_they_would_have_to_ignore(self, client, name):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt="x", extra_body={name: _COMPLETION_CASES[name]})
        assert (raised.value.code, raised.value.param) == ("unsupported_parameter", name)

    async def test_no_prompt_at_all_is_refused(self, client):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt=[])
        assert (raised.value.code, raised.value.param) == ("invalid_parameter", "prompt")

    @pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
    async def test_a_deadline_that_is_none_is_refused(self, client, seconds):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt="x", extra_headers={"X-Request-Timeout": seconds})
        assert raised.value.code == "invalid_timeout"

    async def test_a_misspelt_parameter_is_refused_by_name(self, client):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt="x", extra_body={"temprature": 0})
        assert (raised.value.code, raised.value.param) == ("unknown_parameter", "temprature")


class TestInvalid:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("temperature", 2.5),
            ("temperature", -1),
            ("top_p", 0),
            ("max_tokens", 0),
            ("stop", ["a"] * 17),
            ("stop", ""),
        ],
    )
    async def test_a_value_out_of_range_names_its_field(self, client, field, value):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="auto", prompt="x", extra_body={field: value})
        assert raised.value.code == "invalid_parameter"
        assert raised.value.param == field
        assert raised.value.type == "invalid_request_error"

    async def test_a_missing_field_is_named(self, client):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.post("/completions", body={"model": "auto"}, cast_to=object)
        assert (raised.value.code, raised.value.param) == ("missing_parameter", "prompt")

    async def test_an_image_part_is_refused(self, client):
        part = {"type": "image_url", "image_url": {"url": "http://x"}}
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": [part]}])


class TestFromTheWorker:
    async def test_a_full_queue_is_a_rate_limit_with_a_time(self, client, stack):
        stack.worker.service.fails_with = QueueFull("The queue is full.", retry_after_seconds=7)
        with pytest.raises(openai.RateLimitError) as raised:
            await client.completions.create(model="auto", prompt="x")
        assert raised.value.code == "queue_full"
        assert raised.value.response.headers["Retry-After"] == "7"

    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_error_before_the_first_word_is_a_status(self, client, stack, stream):
        stack.worker.service.fails_with = GenerationFailed("It broke.", remedy="Report it.")
        with pytest.raises(openai.InternalServerError) as raised:
            await client.completions.create(model="auto", prompt="x", stream=stream)
        assert raised.value.status_code == 500
        assert raised.value.code == "generation_failed"

    async def test_an_error_in_the_middle_is_an_event(self, client, stack):
        stack.worker.service.fails_with = GenerationFailed("It broke.")
        stack.worker.service.fails_after_tokens = 2
        words = []
        with pytest.raises(openai.APIError) as raised:
            async for chunk in await client.completions.create(model="auto", prompt="x", stream=True):
                words.append(chunk.choices[0].text)
        assert "".join(words) == "Paris is"
        assert raised.value.code == "generation_failed"

    async def test_a_broken_stream_has_no_done(self, stack):
        stack.worker.service.fails_with = Unavailable("Gone.", code="worker_lost", remedy="Again.")
        stack.worker.service.fails_after_tokens = 1
        async with httpx.AsyncClient() as plain:
            answer = await plain.post(
                f"{stack.url}/v1/completions", json={"model": "base", "prompt": "x", "stream": True}
            )
        assert answer.status_code == 200
        assert '"code":"worker_lost"' in answer.text
        assert "[DONE]" not in answer.text
        await stack.ready()

    async def test_an_answer_that_just_stops_is_an_error(self, client, stack):
        stack.worker.service.ends_without_finish = True
        try:
            with pytest.raises(openai.InternalServerError) as raised:
                await client.completions.create(model="base", prompt="x")
            assert raised.value.status_code == 503
            assert raised.value.code == "worker_lost"
        finally:
            stack.worker.service.ends_without_finish = False
            await stack.ready()


class TestRoutes:
    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v1/nothing", 404, "route_not_found"),
            ("POST", "/", 404, "route_not_found"),
            ("GET", "/v1/completions", 405, "method_not_allowed"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ],
    )
    async def test_unknown_routes_and_methods_have_openai_s_shape(self, stack, method, path, status, code):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            answer = await plain.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == code


class TestRequestIds:
    async def test_a_client_s_id_comes_back(self, stack):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            answer = await plain.get("/v1/models", headers={"X-Request-Id": "order-66"})
        assert answer.headers["X-Request-Id"] == "order-66"

    @pytest.mark.parametrize("presented", ["", "a b", "x" * 129, "a;b"])
    async def test_an_id_that_cannot_go_into_logs_is_replaced(self, stack, presented):
        async with httpx.AsyncClient(base_url=stack.url) as plain:
            answer = await plain.get("/v1/nothing", headers={"X-Request-Id": presented})
        assert answer.headers["X-Request-Id"].startswith("req-")

    async def test_openai_s_client_sees_it(self, client):
        answer = await client.completions.create(model="base", prompt="x")
        assert answer._request_id.startswith("req-")
