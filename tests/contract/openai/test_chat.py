"""`POST /v1/chat/completions` through OpenAI's own client."""

from __future__ import annotations

import pytest

from hilora_rpc.v1 import worker_pb2
from tests.fakes.router_stack import task_texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SUMS = task_texts("sums")[0]
_POEMS = task_texts("poems")[0]


def _user(text):
    return {"role": "user", "content": text}


class TestWhole:
    async def test_it_reads_as_openai_s_own(self, client):
        answer = await client.chat.completions.create(model="auto", messages=[_user(_SUMS)])
        assert answer.object == "chat.completion"
        assert answer.id.startswith("chatcmpl-")
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content == "Paris is the capital."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model_extra["hilora"]["adapters"][0]["name"] == "sums"

    async def test_the_last_user_message_decides(self, client):
        answer = await client.chat.completions.create(
            model="auto",
            messages=[
                {"role": "system", "content": "country capital"},
                _user(_SUMS),
                {"role": "assistant", "content": "add numbers"},
                _user(_POEMS),
                {"role": "assistant", "content": "add numbers plus total"},
            ],
        )
        assert answer.model_extra["hilora"]["adapters"][0]["name"] == "poems"

    async def test_the_worker_gets_every_message_in_order(self, client, stack):
        await client.chat.completions.create(
            model="base",
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "go on", "name": "ann"},
            ],
        )
        messages = stack.worker.service.requests[-1].chat.messages
        assert [(message.role, message.content) for message in messages] == [
            (worker_pb2.CHAT_ROLE_SYSTEM, "be brief"),
            (worker_pb2.CHAT_ROLE_USER, "one\ntwo"),
            (worker_pb2.CHAT_ROLE_ASSISTANT, "yes"),
            (worker_pb2.CHAT_ROLE_USER, "go on"),
        ]

    async def test_an_answer_of_ours_can_be_sent_back(self, client):
        first = await client.chat.completions.create(model="base", messages=[_user("hello")])
        turn = first.choices[0].message.model_dump()
        again = await client.chat.completions.create(model="base", messages=[_user("hello"), turn, _user("more")])
        assert again.choices[0].message.content

    async def test_without_a_limit_the_answer_may_fill_the_context(self, client, stack):
        await client.chat.completions.create(model="base", messages=[_user("x")])
        assert stack.worker.service.requests[-1].sampling.max_tokens == stack.worker.service.max_model_len

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    async def test_both_names_of_the_limit_count(self, client, stack, name):
        await client.chat.completions.create(model="base", messages=[_user("x")], **{name: 7})
        assert stack.worker.service.requests[-1].sampling.max_tokens == 7

    async def test_parameters_that_change_no_token_are_accepted(self, client):
        answer = await client.chat.completions.create(
            model="base",
            messages=[_user("x")],
            user="ann",
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            n=1,
            tools=[],
            logprobs=False,
            presence_penalty=0,
            response_format={"type": "text"},
            stop=None,
        )
        assert answer.choices[0].message.content


class TestStream:
    async def test_the_first_chunk_has_the_role_and_the_plan(self, client):
        stream = await client.chat.completions.create(model="auto", messages=[_user(_SUMS)], stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[0].object == "chat.completion.chunk"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[0].model_extra["hilora"]["adapters"][0]["name"] == "sums"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Paris is the capital."
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].model_extra["hilora"]["adapters"][0]["name"] == "sums"

    async def test_the_plan_is_in_the_headers_before_the_first_chunk(self, client):
        raw = await client.chat.completions.with_raw_response.create(model="sums", messages=[_user("x")], stream=True)
        assert raw.headers["X-HiLoRA-Adapters"] == "sums:8/1"
        assert raw.headers["Content-Type"].startswith("text/event-stream")
        assert [chunk async for chunk in raw.parse()]

    async def test_usage_is_the_last_chunk(self, client):
        stream = await client.chat.completions.create(
            model="auto", messages=[_user(_SUMS)], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 4
        assert chunks[-1].model_extra["hilora"]["adapters"]
