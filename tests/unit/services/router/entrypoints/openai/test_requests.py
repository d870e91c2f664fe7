from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from hilora.errors import InvalidInput
from hilora.routing_plan import RoutingMode
from services.router.entrypoints.openai.chat_request import ChatBody
from services.router.entrypoints.openai.completion_request import CompletionBody
from services.router.entrypoints.openai.route_request import RouteBody
from services.router.request import Grammar, GrammarKind
from services.router.tool_calls import ToolCallFormat

_CHAT = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
_COMPLETION = {"model": "auto", "prompt": "x"}
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields):
    return ChatBody.model_validate(_CHAT | fields)


def sampling_of(body):
    return body.sampling(body.tool_use(ToolCallFormat.AUTO), max_model_len=100)


class TestNeutralValues:
    @pytest.mark.parametrize(
        "fields",
        [
            {"n": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0.0, "frequency_penalty": 0},
            {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "modalities": ["text"]},
            {"n": None, "tools": None, "logit_bias": {}, "function_call": "none"},
        ],
    )
    def test_what_changes_nothing_passes(self, fields):
        body = chat(**fields)
        body.check()
        sampling = sampling_of(body)
        assert (sampling.logprobs, sampling.grammar, dict(sampling.logit_bias)) == (None, None, {})

    @pytest.mark.parametrize("name", ["presence_penalty", "temperature", "min_p"])
    def test_nan_is_no_number(self, name):
        with pytest.raises(ValidationError):
            chat(**{name: float("nan")})


class TestGrammars:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"response_format": {"type": "json_object"}}, Grammar(kind=GrammarKind.JSON_OBJECT)),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}}},
                Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(_SCHEMA)),
            ),
            (
                {"structured_outputs": {"json": _SCHEMA}},
                Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(_SCHEMA)),
            ),
            ({"structured_outputs": {"regex": "a+"}}, Grammar(kind=GrammarKind.REGEX, text="a+")),
            ({"structured_outputs": {"choice": ["a", "b"]}}, Grammar(kind=GrammarKind.CHOICE, choices=("a", "b"))),
            ({"guided_json": _SCHEMA}, Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(_SCHEMA))),
            ({"guided_json": '{"a": 1}'}, Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"a": 1}')),
            ({"guided_regex": "a+"}, Grammar(kind=GrammarKind.REGEX, text="a+")),
            ({"guided_choice": ["a", "b"]}, Grammar(kind=GrammarKind.CHOICE, choices=("a", "b"))),
        ],
    )
    def test_each_way_to_ask_for_a_form(self, fields, expected):
        assert sampling_of(chat(**fields)).grammar == expected
        assert CompletionBody.model_validate(_COMPLETION | fields).sampling().grammar == expected

    @pytest.mark.parametrize(
        "fields",
        [
            {"response_format": {"type": "json_schema"}},
            {"structured_outputs": {}},
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            {"guided_regex": "a", "guided_choice": ["a"]},
            {"guided_regex": "a", "tools": [_TOOL]},
            {"guided_json": "{", "tools": [_TOOL]},
            {"guided_json": "[" * 100_000, "tools": [_TOOL]},
            {"guided_json": "[" * 900 + "]" * 900, "tools": [_TOOL]},
            {"response_format": {"type": "json_object"}, "tools": [_TOOL], "tool_choice": "required"},
            {"tool_choice": "required"},
            {"tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "subtract"}}},
        ],
    )
    def test_wishes_that_contradict_themselves_are_refused(self, fields):
        with pytest.raises(InvalidInput):
            sampling_of(chat(**fields))

    def test_a_required_call_is_a_list_of_calls(self):
        fields = {"tools": [_TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        schema = json.loads(sampling_of(chat(**fields)).grammar.text)
        assert (schema["type"], schema["minItems"], schema["maxItems"]) == ("array", 1, 1)
        assert schema["items"]["anyOf"][0]["properties"]["name"] == {"const": "add"}

    def test_a_named_call_is_its_arguments(self):
        choice = {"type": "function", "function": {"name": "add"}}
        assert json.loads(sampling_of(chat(tools=[_TOOL], tool_choice=choice)).grammar.text) == {"type": "object"}

    def test_tools_that_must_not_be_called_are_not_described(self):
        body = chat(tools=[_TOOL], tool_choice="none")
        assert body.chat_prompt(body.tool_use(ToolCallFormat.AUTO)).tools == ""

    def test_beside_tools_an_answer_has_its_form_or_calls(self):
        fields = {"tools": [_TOOL], "response_format": {"type": "json_object"}}
        body = chat(**fields)
        tools = body.tool_use(ToolCallFormat.HERMES)
        answer, calls = json.loads(sampling_of(body).grammar.text)["anyOf"]
        assert (answer, calls["type"]) == ({"type": "object"}, "array")
        assert tools.format() is ToolCallFormat.LIST

    def test_tools_that_must_not_be_called_leave_the_form_alone(self):
        body = chat(tools=[_TOOL], tool_choice="none", response_format={"type": "json_object"})
        assert sampling_of(body).grammar == Grammar(kind=GrammarKind.JSON_OBJECT)


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
    )
    def test_each_form(self, prompt, expected):
        assert CompletionBody.model_validate({"model": "auto", "prompt": prompt}).prompts() == expected

    @pytest.mark.parametrize("prompt", [[], [[]], ["a", 1], [1, "a"], [-1], [2**32], [["a"]], ["a"] * 129])
    def test_others_are_refused(self, prompt):
        with pytest.raises(ValidationError):
            CompletionBody.model_validate({"model": "auto", "prompt": prompt})

    @pytest.mark.parametrize(
        "fields",
        [{"max_tokens": 0}, {"best_of": 2}, {"suffix": "!"}, {"prompt": ["a"] * 65, "n": 2}],
    )
    def test_what_cannot_be_done_is_refused(self, fields):
        with pytest.raises(InvalidInput):
            CompletionBody.model_validate(_COMPLETION | fields).check()

    def test_an_echo_alone_still_runs_for_one_token(self):
        body = CompletionBody.model_validate(_COMPLETION | {"max_tokens": 0, "echo": True})
        body.check()
        assert (body.sampling().max_tokens, body.is_echo_alone) == (1, True)


class TestConversions:
    def test_left_out_parameters_stay_left_out(self):
        sampling = CompletionBody.model_validate(_COMPLETION).sampling()
        assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (None, None, None, ())

    @pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, 2**64 - 1), (2**64 - 1, 2**64 - 1)])
    def test_seeds_become_unsigned(self, seed, expected):
        assert CompletionBody.model_validate(_COMPLETION | {"seed": seed}).sampling().seed == expected

    def test_the_newer_limit_wins(self):
        body = ChatBody.model_validate(_CHAT | {"max_tokens": 5, "max_completion_tokens": 7})
        assert sampling_of(body).max_tokens == 7

    def test_options_become_the_router_s(self):
        body = ChatBody.model_validate(
            _CHAT | {"hilora": {"mode": "paper", "gamma": 0.5, "exclude_adapters": ["a", "a"], "seed": 3}}
        )
        options = body.hilora.routing_options(body.model)
        assert options.mode is RoutingMode.PAPER
        assert options.exclude_adapters == {"a"}
        assert (options.gamma, options.seed, options.max_candidates) == (0.5, 3, None)

    def test_turns_that_cannot_be_read_are_refused(self):
        for turn in (
            {"role": "assistant", "content": "x", "tool_calls": [{}]},
            {"role": "user", "content": "x", "unknown": 1},
            {"role": "function", "content": "x"},
        ):
            with pytest.raises(ValidationError):
                chat(messages=[turn])

    @pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
    def test_turns_that_say_nothing_are_refused(self, role):
        body = chat(messages=[{"role": role, "content": None}])
        with pytest.raises(InvalidInput) as refusal:
            body.chat_prompt(body.tool_use(ToolCallFormat.AUTO))
        assert refusal.value.place == "messages.content"

    def test_calls_and_their_results_go_along(self):
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        body = chat(
            messages=[
                {"role": "user", "content": "add"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
            ],
            tools=[_TOOL],
        )
        prompt = body.chat_prompt(body.tool_use(ToolCallFormat.AUTO))
        assert prompt.messages[1].tool_calls[0].arguments == '{"a": 1}'
        assert (prompt.messages[2].role, prompt.messages[2].tool_call_id) == ("tool", "c1")
        assert json.loads(prompt.tools) == [_TOOL]
        assert prompt.routing_text == "add"

    def test_only_an_assistant_s_message_can_be_continued(self):
        body = chat(continue_final_message=True)
        with pytest.raises(InvalidInput):
            body.chat_prompt(body.tool_use(ToolCallFormat.AUTO))


class TestRouteBody:
    @pytest.mark.parametrize("fields", [{"text": "x"}, {"prompt": "x"}, {"messages": _CHAT["messages"]}])
    def test_any_one_of_three_is_the_text(self, fields):
        assert RouteBody.model_validate(fields).routed_prompt().routing_text == "x"

    @pytest.mark.parametrize("fields", [{}, {"text": "x", "prompt": "x"}])
    def test_none_or_two_are_refused(self, fields):
        with pytest.raises(InvalidInput):
            RouteBody.model_validate(fields).routed_prompt()
