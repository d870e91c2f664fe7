from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.tool_calls import ArgumentsPiece, CallPiece, ToolCallFormat, ToolCallScanner, joined

NAMES = frozenset({"add", "weather"})
ADD = '{"name": "add", "arguments": {"a": 1}}'


def read(format, pieces, **options):  # noqa: A002  (the word for it)
    """The text and the calls `(name, arguments)` of an answer that came in pieces."""
    scanner = ToolCallScanner(format, names=NAMES, **options)
    found = [piece for text in pieces for piece in scanner.feed(text)] + list(scanner.end())
    text, calls = joined(found)
    assert len({call.call_id for call in calls}) == len(calls)
    return text, [(call.name, json.loads(call.arguments)) for call in calls]


ANSWERS = [
    (ToolCallFormat.HERMES, f"<tool_call>\n{ADD}\n</tool_call>", "", [("add", {"a": 1})]),
    (ToolCallFormat.HERMES, f"Let me see.\n<tool_call>{ADD}</tool_call>", "Let me see.", [("add", {"a": 1})]),
    (
        ToolCallFormat.HERMES,
        f"<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>",
        "",
        [("add", {"a": 1}), ("add", {"a": 1})],
    ),
    (ToolCallFormat.HERMES, f"<tool_call>{ADD}", "", [("add", {"a": 1})]),
    (ToolCallFormat.MISTRAL, f"[TOOL_CALLS][{ADD}]", "", [("add", {"a": 1})]),
    (ToolCallFormat.MISTRAL, '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]weather{}', "", [("add", {"a": 1}), ("weather", {})]),
    (ToolCallFormat.MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1}', "", [("add", {"a": 1})]),
    (ToolCallFormat.LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (ToolCallFormat.LLAMA, '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
    (
        ToolCallFormat.LLAMA,
        '{"name": "add", "parameters": {}}; {"name": "weather", "parameters": {"at": "x"}}',
        "",
        [("add", {}), ("weather", {"at": "x"})],
    ),
    (ToolCallFormat.LIST, f"[{ADD}]", "", [("add", {"a": 1})]),
]
TEXTS = [
    "Nothing to call.",
    "1 < 2 <tool",
    "<tool_call>not json</tool_call>",
    '<tool_call>{"arguments": {}}</tool_call>',
    '{"answer": 42}',
    '{"name": "unknown", "parameters": {}}',
    '{"name": "add", "parameters": {}} and words after it',
    "[1, 2, 3]",
    "[TOOL_CALLS]what?",
    "[TOOL_CALLS][no{",
    "{" * 50,
    "[" * 100_000,
]


class TestCalls:
    @pytest.mark.parametrize(("format", "answer", "text", "calls"), ANSWERS)
    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_they_are_found_however_the_answer_is_cut(self, format, answer, text, calls, size):  # noqa: A002
        pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
        assert read(format, pieces) == (text, calls)

    @pytest.mark.parametrize(("format", "answer", "text", "calls"), ANSWERS[:-1])
    def test_auto_finds_them_all(self, format, answer, text, calls):  # noqa: A002
        assert read(ToolCallFormat.AUTO, list(answer)) == (text, calls)

    def test_a_cut_off_call_keeps_what_came_of_its_arguments(self):
        scanner = ToolCallScanner(ToolCallFormat.HERMES, names=NAMES)
        found = [*scanner.feed('<tool_call>{"name": "add", "arguments": {"a": 1'), *scanner.end()]
        assert joined(found)[1][0].arguments == '{"a": 1'

    def test_arguments_go_out_before_the_call_is_complete(self):
        scanner = ToolCallScanner(ToolCallFormat.LIST, names=NAMES)
        first, second = scanner.feed('[{"name": "add", "arguments": {"a"')
        assert isinstance(first, CallPiece)
        assert second == ArgumentsPiece(call_idx=0, text='{"a"')

    def test_an_answer_that_a_grammar_made_either_form_is_a_text_if_it_is_no_list_of_calls(self):
        for answer in ('{"name": "add", "arguments": {}}', '[{"name": "other"}]', "[1, 2]", '["name"]'):
            assert read(ToolCallFormat.LIST, list(answer)) == (answer, [])

    def test_arguments_belong_to_the_forced_function(self):
        assert read(ToolCallFormat.ARGUMENTS, ['{"a"', ": 1}"], forced_name="add") == ("", [("add", {"a": 1})])


class TestTexts:
    @pytest.mark.parametrize("answer", TEXTS)
    def test_what_is_no_call_is_passed_on_as_it_is(self, answer):
        assert read(ToolCallFormat.AUTO, [answer]) == (answer, [])

    def test_words_are_not_held_back_longer_than_needed(self):
        scanner = ToolCallScanner(ToolCallFormat.AUTO, names=NAMES)
        assert [piece.text for piece in scanner.feed("Hello wor")] == ["Hello wor"]
        assert [piece.text for piece in scanner.feed("ld <to")] == ["ld"]
        assert [piece.text for piece in scanner.feed("p>")] == [" <top>"]

    def test_json_that_is_no_call_is_not_held_back(self):
        scanner = ToolCallScanner(ToolCallFormat.AUTO, names=NAMES)
        assert not list(scanner.feed('{"ans'))
        assert [piece.text for piece in scanner.feed('wer": ')] == ['{"answer":']

    @given(st.lists(st.sampled_from(["<tool", "_call>", "</tool_call>", "[TOOL", "_CALLS]", "{", "}", "a", " ", "\n"])))
    def test_nothing_is_lost_but_blanks_around_calls(self, pieces):
        text, calls = read(ToolCallFormat.AUTO, pieces)
        assert not calls
        assert "".join(text.split()) == "".join("".join(pieces).split())
