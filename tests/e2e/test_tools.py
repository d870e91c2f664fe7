"""Tools and schemas on a base that can spell: its weights are random, its answers are what the grammar allows."""

from __future__ import annotations

import json

import openai
import pytest

from tests.builders.models import save_base
from tests.builders.system import RunningSystem

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}[{{ message.role }}]"
    "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
SHIFT = {
    "type": "function",
    "function": {
        "name": "shift",
        "description": "Moves each letter.",
        "parameters": {
            "type": "object",
            "properties": {"by": {"enum": [1, 2, 3]}, "upper": {"type": "boolean"}},
            "required": ["by", "upper"],
            "additionalProperties": False,
        },
    },
}
REST = {"type": "function", "function": {"name": "rest"}}
QUESTION = [{"role": "user", "content": "shift it"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speller")
    save_base(folder / "base", chat_template=TEMPLATE, max_position_embeddings=2048)
    command = ("serve", "--base", str(folder / "base"))
    running = RunningSystem(data_dir=folder / "data", command=command, pool=frozenset()).start()
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    assert running.terminate() == 0, running.log[-4000:]


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

    def test_a_call_streams_name_first(self, client):
        stream = ask(client, tools=[SHIFT], tool_choice="required", parallel_tool_calls=False, stream=True)
        calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        assert [call.function.name for call in calls if call.function.name] == [calls[0].function.name] == ["shift"]
        check_shift("".join(call.function.arguments or "" for call in calls))

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
