"""Tools and schemas on a base that can spell: its weights are random, its answers are what the grammar allows."""

from __future__ import annotations

import json

import openai
import pytest

from tests.builders.speller import SHIFT, running_speller

REST = {"type": "function", "function": {"name": "rest"}}
QUESTION = [{"role": "user", "content": "shift it"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        running_speller(tmp_path_factory.mktemp("speller")) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client, **fields):
    return client.chat.completions.create(model="base", messages=QUESTION, max_tokens=300, seed=1, **fields)


def check_shift(arguments):
    values = json.loads(arguments)
    assert values["by"] in {1, 2, 3}
    assert isinstance(values["upper"], bool)


class TestForcedCalls:
    def test_a_named_tool_gets_arguments_of_its_schema(self, client):
        answer = ask(client, tools=[SHIFT, REST], tool_choice={"type": "function", "function": {"name": "shift"}})
        call = answer.choices[0].message.tool_calls[0]
        assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "shift")
        check_shift(call.function.arguments)

    def test_some_tool_is_called_and_its_result_can_be_answered(self, client):
        answer = ask(client, tools=[SHIFT], tool_choice="required", parallel_tool_calls=False)
        message = answer.choices[0].message
        check_shift(message.tool_calls[0].function.arguments)

        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
        again = client.chat.completions.create(
            model="base", messages=[*QUESTION, message.model_dump(), result], tools=[SHIFT], max_tokens=5
        )
        assert again.usage.prompt_tokens > answer.usage.prompt_tokens

    def test_a_call_streams_in_pieces(self, client):
        stream = ask(client, tools=[SHIFT], tool_choice="required", parallel_tool_calls=False, stream=True)
        pieces = [call.function for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        assert [piece.name for piece in pieces if piece.name] == ["shift"]
        assert len(pieces) > 2
        check_shift("".join(piece.arguments for piece in pieces))

    def test_an_answer_of_a_form_may_call_instead(self, client):
        form = {"type": "json_schema", "json_schema": {"name": "move", "schema": SHIFT["function"]["parameters"]}}
        choice = ask(client, tools=[SHIFT], response_format=form, parallel_tool_calls=False).choices[0]
        calls = choice.message.tool_calls or ()
        assert choice.finish_reason == ("tool_calls" if calls else "stop")
        check_shift(calls[0].function.arguments if calls else choice.message.content)

    def test_tools_are_part_of_the_prompt(self, client):
        alone, described = (ask(client, **fields) for fields in ({}, {"tools": [SHIFT]}))
        assert described.usage.prompt_tokens > alone.usage.prompt_tokens + len("shift")


class TestSchemas:
    @pytest.mark.parametrize("is_stream", [False, True])
    def test_the_answer_is_an_instance(self, client, is_stream):
        schema = SHIFT["function"]["parameters"]
        form = {"type": "json_schema", "json_schema": {"name": "move", "schema": schema, "strict": True}}
        answer = ask(client, response_format=form, stream=is_stream)
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            if is_stream
            else answer.choices[0].message.content
        )
        check_shift(text)

    def test_a_schema_that_is_none_is_refused(self, client):
        form = {"type": "json_schema", "json_schema": {"name": "move", "schema": {"type": "nonsense"}}}
        with pytest.raises(openai.BadRequestError):
            ask(client, response_format=form)
