from __future__ import annotations

import json

import httpx
import pytest

from hilora.errors import HiloraError, InvalidInput, Unavailable
from hilora_cli.api_client import ApiClient


def client_of(handler, **arguments):
    return ApiClient("http://server/", transport=httpx.MockTransport(handler), **arguments)


class TestAnswers:
    async def test_json_comes_back_as_it_was_sent(self):
        async with client_of(lambda request: httpx.Response(200, json={"path": request.url.path})) as client:
            assert await client.get("/v1/models") == {"path": "/v1/models"}

    async def test_an_empty_answer_is_an_empty_object(self):
        async with client_of(lambda _: httpx.Response(204)) as client:
            assert await client.delete("/v1/adapters/x") == {}

    async def test_the_key_travels_as_a_bearer_token(self):
        async with client_of(
            lambda request: httpx.Response(200, json={"sent": request.headers["authorization"]}), api_key="k"
        ) as client:
            assert await client.get("/") == {"sent": "Bearer k"}


class TestRefusals:
    async def test_the_servers_words_are_kept_and_the_remedy_is_not_said_twice(self):
        error = {"message": "It is wrong. Mend it.", "code": "wrong", "remedy": "Mend it.", "param": "x"}
        async with client_of(lambda _: httpx.Response(400, json={"error": error})) as client:
            with pytest.raises(HiloraError) as raised:
                await client.get("/")

        refusal = raised.value
        assert (refusal.message, refusal.code, refusal.remedy, refusal.place) == (
            "It is wrong.",
            "wrong",
            "Mend it.",
            "x",
        )

    @pytest.mark.parametrize("status", [200, 502])
    async def test_somebody_elses_page_is_no_answer_of_ours(self, status):
        async with client_of(lambda _: httpx.Response(status, text="<html>")) as client:
            with pytest.raises(HiloraError) as raised:
                await client.get("/")

        assert raised.value.code == "unexpected_answer"

    async def test_nobody_there_says_how_to_start_a_server(self):
        def refuse(request):
            raise httpx.ConnectError("refused", request=request)

        async with client_of(refuse) as client:
            with pytest.raises(Unavailable) as raised:
                await client.get("/")

        assert raised.value.code == "server_unreachable"
        assert "hilora demo" in raised.value.remedy

    async def test_a_url_that_is_none_is_said_to_be_none(self):
        async with ApiClient("localhost:8000") as client:
            with pytest.raises(InvalidInput) as raised:
                await client.get("/")

        assert raised.value.code == "invalid_url"


class TestStreams:
    @staticmethod
    def events(*lines):
        body = "".join(f"{line}\n\n" for line in lines)
        return lambda _: httpx.Response(200, text=body, headers={"content-type": "text/event-stream"})

    async def test_events_come_until_done(self):
        lines = [": comment", 'data: {"n": 1}', 'data: {"n": 2}', "data: [DONE]"]
        async with client_of(self.events(*lines)) as client:
            assert [event async for event in client.stream("/", {})] == [{"n": 1}, {"n": 2}]

    async def test_an_error_in_the_middle_is_raised(self):
        broken = json.dumps({"error": {"message": "It broke.", "code": "generation_failed"}})
        async with client_of(self.events('data: {"n": 1}', f"data: {broken}")) as client:
            seen = []
            with pytest.raises(HiloraError, match="It broke"):
                async for event in client.stream("/", {}):
                    seen.append(event)

        assert seen == [{"n": 1}]

    async def test_a_refusal_before_the_stream_is_raised_too(self):
        async with client_of(lambda _: httpx.Response(404, json={"error": {"message": "No.", "code": "no"}})) as client:
            with pytest.raises(HiloraError, match="No"):
                await anext(client.stream("/", {}))
