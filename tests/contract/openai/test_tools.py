"""Tools and forms of answers through OpenAI's own client."""

from __future__ import annotations

import json

import openai
import pytest
from pydantic import BaseModel

from hilora_rpc.v1 import worker_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
QUESTION = [{"role": "user", "content": "How is the weather in Paris?"}]


@pytest.fixture
def says(stack):
    """Lets the worker answer with a text, in pieces of three characters."""

    def say(text):
        stack.worker.service.words = tuple(text[start : start + 3] for start in range(0, len(text), 3))

    before = stack.worker.service.words
    yield say
    stack.worker.service.words = before


async def ask(client, **fields):
    return await client.chat.completions.create(model="base", messages=QUESTION, max_tokens=500, **fields)


class TestCalls:
    async def test_a_call_is_read_and_its_result_can_be_sent_back(self, client, stack, says):
        says(CALL)
        answer = await ask(client, tools=TOOLS)
        message = answer.choices[0].message
        call = message.tool_calls[0]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert (message.content, call.function.name) == (None, "weather")
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        assert json.loads(stack.worker.service.requests[-1].chat.tools) == TOOLS

        says("Sunny.")
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        again = await client.chat.completions.create(
            model="base", messages=[*QUESTION, message.model_dump(), result], tools=TOOLS
        )
        turns = stack.worker.service.requests[-1].chat.messages
        assert again.choices[0].message.content == "Sunny."
        assert turns[1].tool_calls[0].name == "weather"
        assert (turns[2].role, turns[2].tool_call_id) == (worker_pb2.CHAT_ROLE_TOOL, call.id)

    async def test_words_before_a_call_stay_words(self, client, says):
        says(f"Let me look. {CALL}")
        message = (await ask(client, tools=TOOLS)).choices[0].message
        assert message.content == "Let me look."
        assert len(message.tool_calls) == 1

    async def test_in_a_stream_a_call_s_name_comes_first_and_its_arguments_piece_by_piece(self, client, says):
        says(f"Let me look. {CALL}{CALL}")
        stream = await ask(client, tools=TOOLS, stream=True)
        words, begun, arguments, reason = "", {}, {}, None
        async for chunk in stream:
            choice = chunk.choices[0]
            words += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.id is not None:
                    begun[call.index] = (call.type, call.function.name)
                    assert call.function.arguments == ""
                arguments.setdefault(call.index, []).append(call.function.arguments)
            reason = choice.finish_reason or reason
        assert words == "Let me look."
        assert begun == {0: ("function", "weather"), 1: ("function", "weather")}
        assert [json.loads("".join(pieces)) for pieces in arguments.values()] == [{"city": "Paris"}] * 2
        assert all(len(pieces) > 3 for pieces in arguments.values())
        assert reason == "tool_calls"

    async def test_the_client_s_own_helper_puts_a_streamed_call_together(self, client, says):
        says(CALL)
        tool = {**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}
        async with client.chat.completions.stream(model="base", messages=QUESTION, max_tokens=500, tools=[tool]) as got:
            final = await got.get_final_completion()
        call = final.choices[0].message.tool_calls[0]
        assert (call.function.name, call.function.parsed_arguments) == ("weather", {"city": "Paris"})

    async def test_without_a_call_the_answer_is_a_text(self, client, says):
        says("It is sunny.")
        answer = await ask(client, tools=TOOLS, tool_choice="auto")
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("It is sunny.", "stop")
        assert answer.choices[0].message.tool_calls is None

    async def test_nothing_is_read_as_a_call_where_none_is_wanted(self, client, stack, says):
        says(CALL)
        answer = await ask(client, tools=TOOLS, tool_choice="none")
        assert answer.choices[0].message.content == CALL
        assert stack.worker.service.requests[-1].chat.tools == ""

    async def test_a_required_call_is_forced_by_a_grammar(self, client, stack, says):
        says('[{"name": "weather", "arguments": {"city": "Paris"}}]')
        answer = await ask(client, tools=TOOLS, tool_choice="required")
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"
        schema = json.loads(stack.worker.service.requests[-1].sampling.grammar.json_schema)
        assert schema["items"]["anyOf"][0]["properties"]["name"] == {"const": "weather"}

    async def test_a_named_call_is_forced_to_its_parameters(self, client, stack, says):
        says('{"city": "Paris"}')
        answer = await ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}})
        assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'
        grammar = stack.worker.service.requests[-1].sampling.grammar
        assert json.loads(grammar.json_schema) == TOOLS[0]["function"]["parameters"]

    async def test_an_answer_that_was_cut_off_says_so(self, client, says):
        says(CALL + " " * 3000)
        answer = await ask(client, tools=TOOLS)
        assert answer.choices[0].finish_reason == "length"

    @pytest.mark.parametrize(
        "fields",
        [
            {"tool_choice": "required"},
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
            {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
            {"tools": [{"type": "retrieval"}]},
        ],
    )
    async def test_what_cannot_be_called_is_refused(self, client, fields):
        with pytest.raises(openai.BadRequestError) as raised:
            await ask(client, **fields)
        assert raised.value.code == "invalid_parameter"


class Weather(BaseModel):
    city: str
    is_sunny: bool


class TestForms:
    async def test_a_pydantic_model_is_the_form_and_the_answer(self, client, stack, says):
        says('{"city": "Paris", "is_sunny": true}')
        answer = await client.chat.completions.parse(model="base", messages=QUESTION, response_format=Weather)
        assert answer.choices[0].message.parsed == Weather(city="Paris", is_sunny=True)
        schema = json.loads(stack.worker.service.requests[-1].sampling.grammar.json_schema)
        assert set(schema["properties"]) == {"city", "is_sunny"}

    async def test_any_object(self, client, stack):
        await ask(client, response_format={"type": "json_object"})
        assert stack.worker.service.requests[-1].sampling.grammar.json_object

    async def test_vllm_s_choices(self, client, stack):
        await ask(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
        assert list(stack.worker.service.requests[-1].sampling.grammar.choice.texts) == ["yes", "no"]

    async def test_vllm_s_sampling_parameters_arrive(self, client, stack):
        await ask(
            client,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"7": 3},
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "stop_token_ids": [9]},
        )
        sampling = stack.worker.service.requests[-1].sampling
        assert (sampling.presence_penalty, sampling.frequency_penalty, dict(sampling.logit_bias)) == (0.5, -0.5, {7: 3})
        assert (sampling.top_k, sampling.min_p, sampling.min_tokens, list(sampling.stop_token_ids)) == (5, 0.1, 2, [9])
