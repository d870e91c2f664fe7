from __future__ import annotations

import json

import pytest

from hilora.errors import InvalidInput
from services.worker.models.chat_turns import ChatTurn, TurnToolCall, template_input

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
KNOWS_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
KNOWS_NONE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CALLED = ChatTurn(
    role="assistant", content="", tool_calls=(TurnToolCall(call_id="c1", name="add", arguments='{"a": 1}'),)
)
TURNS = [ChatTurn(role="user", content="add"), CALLED, ChatTurn(role="tool", content="2", tool_call_id="c1")]


class TestTemplatesWithTools:
    def test_they_get_them_as_they_are(self):
        given = template_input(TURNS, tools=json.dumps(TOOLS), template=KNOWS_TOOLS)
        assert given.tools == TOOLS
        assert [message["role"] for message in given.messages] == ["user", "assistant", "tool"]
        call = given.messages[1]["tool_calls"][0]
        assert (call["id"], call["function"]) == ("c1", {"name": "add", "arguments": {"a": 1}})
        assert given.messages[2]["tool_call_id"] == "c1"

    def test_without_tools_they_get_none(self):
        assert template_input(TURNS, tools="", template=KNOWS_TOOLS).tools is None

    def test_arguments_that_are_no_json_stay_text(self):
        call = TurnToolCall(call_id="c1", name="add", arguments="{oops")
        given = template_input(
            [ChatTurn(role="assistant", content="", tool_calls=(call,))], tools="", template=KNOWS_TOOLS
        )
        assert given.messages[0]["tool_calls"][0]["function"]["arguments"] == "{oops"


class TestTemplatesWithout:
    def test_tools_are_described_in_a_system_turn(self):
        given = template_input(TURNS, tools=json.dumps(TOOLS), template=KNOWS_NONE)
        assert given.tools is None
        assert given.messages[0]["role"] == "system"
        assert json.dumps(TOOLS[0]) in given.messages[0]["content"]

    def test_a_system_turn_that_is_there_is_kept(self):
        turns = [ChatTurn(role="system", content="Be brief."), *TURNS]
        given = template_input(turns, tools=json.dumps(TOOLS), template=KNOWS_NONE)
        assert given.messages[0]["content"].startswith("Be brief.\n\n")
        assert [message["role"] for message in given.messages] == ["system", "user", "assistant", "user"]

    def test_calls_and_results_are_words(self):
        given = template_input(TURNS, tools="", template=KNOWS_NONE)
        assert given.messages[1] == {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        }
        assert given.messages[2] == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}

    def test_a_plain_conversation_stays_as_it_is(self):
        given = template_input([ChatTurn(role="user", content="hi", name="ann")], tools="", template=KNOWS_NONE)
        assert given.messages == [{"role": "user", "content": "hi", "name": "ann"}]


class TestTools:
    @pytest.mark.parametrize("tools", ["{", "{}", "[1]", "null"])
    def test_what_is_no_list_of_objects_is_refused(self, tools):
        with pytest.raises(InvalidInput) as refusal:
            template_input(TURNS, tools=tools, template=KNOWS_TOOLS)
        assert refusal.value.code == "invalid_tools"
