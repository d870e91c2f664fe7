"""Several answers, several prompts, and log-probabilities, through OpenAI's own client."""

from __future__ import annotations

import openai
import pytest

from hilora.errors import QueueFull
from tests.fakes.router_stack import task_texts

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ANSWER = "Paris is the capital."


def _user(text):
    return {"role": "user", "content": text}


class TestSeveralAnswers:
    async def test_each_has_its_index_and_they_count_one_prompt(self, client, stack):
        answer = await client.chat.completions.create(model="base", messages=[_user("one two")], n=3)
        assert [(choice.index, choice.message.content) for choice in answer.choices] == [
            (index, _ANSWER) for index in range(3)
        ]
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 12)
        assert stack.worker.service.requests[-1].sampling.n == 3

    async def test_they_stream_side_by_side(self, client):
        stream = await client.chat.completions.create(
            model="base", messages=[_user("x")], n=2, stream=True, stream_options={"include_usage": True}
        )
        texts, roles, ends = {}, {}, {}
        async for chunk in stream:
            for choice in chunk.choices:
                roles.setdefault(choice.index, choice.delta.role)
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                ends[choice.index] = choice.finish_reason
            usage = chunk.usage
        assert texts == {0: _ANSWER, 1: _ANSWER}
        assert roles == {0: "assistant", 1: "assistant"}
        assert ends == {0: "stop", 1: "stop"}
        assert (usage.prompt_tokens, usage.completion_tokens) == (1, 8)


class TestSeveralPrompts:
    async def test_each_is_routed_by_its_own_words(self, client):
        prompts = [task_texts("sums")[0], task_texts("poems")[0]]
        answer = await client.completions.create(model="auto", prompt=prompts, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [plan["adapters"][0]["name"] for plan in answer.model_extra["hilora"]["prompts"]] == ["sums", "poems"]
        assert answer.usage.prompt_tokens == sum(len(prompt.split()) for prompt in prompts)

    async def test_they_stream_in_one_stream(self, client):
        stream = await client.completions.create(model="base", prompt=["a", "b"], n=2, stream=True)
        texts = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
        assert texts == dict.fromkeys(range(4), _ANSWER)

    async def test_one_that_fails_fails_them_all_before_anything_was_sent(self, client, stack):
        stack.worker.service.fails_with = QueueFull("full", retry_after_seconds=1)
        with pytest.raises(Exception, match="full") as raised:
            await client.completions.create(model="base", prompt=["a", "b"], stream=True)
        assert raised.value.status_code == 429

    async def test_token_ids_are_routed_by_the_text_they_stand_for(self, client, stack):
        answer = await client.completions.create(model="auto", prompt=[5, 6, 7])
        assert answer.choices[0].text == _ANSWER
        assert list(stack.worker.service.requests[-1].tokens.token_ids) == [5, 6, 7]


class TestLogprobs:
    async def test_chat_tells_tokens_bytes_and_the_likeliest(self, client):
        answer = await client.chat.completions.create(
            model="base", messages=[_user("x")], logprobs=True, top_logprobs=2
        )
        content = answer.choices[0].logprobs.content
        assert "".join(position.token for position in content) == _ANSWER
        assert bytes(content[0].bytes).decode() == "Paris"
        assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -1.5]

    async def test_in_a_stream_each_piece_has_its_own(self, client):
        stream = await client.chat.completions.create(model="base", messages=[_user("x")], logprobs=True, stream=True)
        told = [
            position.token
            async for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
            for position in choice.logprobs.content
        ]
        assert "".join(told) == _ANSWER

    async def test_completions_tell_them_by_place_in_the_text(self, client):
        answer = await client.completions.create(model="base", prompt="x", logprobs=1)
        told = answer.choices[0].logprobs
        assert "".join(told.tokens) == answer.choices[0].text
        assert all(
            answer.choices[0].text[offset:].startswith(token)
            for token, offset in zip(told.tokens, told.text_offset, strict=True)
        )
        assert told.token_logprobs == [-0.5] * 4

    async def test_an_echo_begins_with_a_token_that_nothing_predicted(self, client):
        answer = await client.completions.create(model="base", prompt="my prompt", logprobs=0, echo=True)
        told = answer.choices[0].logprobs
        assert answer.choices[0].text == "my prompt" + _ANSWER
        assert told.token_logprobs[0] is None
        assert told.tokens[1] == " prompt"

    async def test_an_echo_alone_has_no_answer(self, client):
        answer = await client.completions.create(model="base", prompt="my prompt", logprobs=0, echo=True, max_tokens=0)
        assert answer.choices[0].text == "my prompt"
        assert len(answer.choices[0].logprobs.tokens) == 2

    async def test_every_answer_has_the_echo_s_probabilities(self, client):
        answer = await client.completions.create(model="base", prompt="my prompt", logprobs=0, echo=True, n=2)
        assert [choice.logprobs.tokens[1] for choice in answer.choices] == [" prompt", " prompt"]

    async def test_an_echo_streams_with_its_probabilities(self, client):
        stream = await client.completions.create(model="base", prompt="my prompt", logprobs=0, echo=True, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        told = [choice.logprobs for choice in chunks if choice.logprobs]
        assert "".join(choice.text for choice in chunks) == "my prompt" + _ANSWER
        assert told[0].tokens[1] == " prompt"
        assert told[0].token_logprobs[0] is None
        assert told[1].text_offset == [len("my prompt")]

    async def test_several_scored_echoes_do_not_stream(self, client):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.completions.create(model="base", prompt="x", logprobs=0, echo=True, n=2, stream=True)
        assert raised.value.code == "unsupported_parameter"

    async def test_an_echo_streams_first(self, client):
        stream = await client.completions.create(model="base", prompt="my prompt ", echo=True, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "my prompt " + _ANSWER
