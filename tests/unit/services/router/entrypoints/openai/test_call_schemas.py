"""Schemas of calls, compiled by the engine's own compiler: they let through what they should, and nothing else."""

from __future__ import annotations

import json
from functools import cache

import pytest

from services.router.entrypoints.openai.call_schemas import FunctionBody, call_list_schema, calls_or_answer_schema
from services.worker.engine.sampling import sampling_params
from services.worker.engine.sampling.grammar import GrammarCompiler
from services.worker.models.token_vocabulary import TokenVocabulary
from tests.builders.tokenizers import TOKENIZERS

_TREE = {
    "type": "object",
    "properties": {"node": {"$ref": "#/$defs/node"}},
    "required": ["node"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"size": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["size"],
            "additionalProperties": False,
        }
    },
}
_PLAIN = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
_FUNCTIONS = [
    FunctionBody(name="plain", parameters=_PLAIN),
    FunctionBody(name="tree", parameters=_TREE),
    FunctionBody(name="itself", parameters={"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}),
    FunctionBody(name="nothing"),
]


@cache
def compiler() -> GrammarCompiler:
    tokenizer = TOKENIZERS["byte-level"]()
    return GrammarCompiler(TokenVocabulary(tokenizer, len(tokenizer)), eos_token_ids=frozenset({1}))


def fits(schema, value) -> bool:
    """Whether a grammar of the schema lets a value through, token by token, to its end."""
    text = json.dumps(value, separators=(", ", ": "))
    grammar = sampling_params.Grammar(kind=sampling_params.GrammarKind.JSON_SCHEMA, text=json.dumps(schema))
    matcher = compiler().compile(grammar)
    for token_id in TOKENIZERS["byte-level"]()(text, add_special_tokens=False)["input_ids"]:
        if not matcher.allowed_tokens()[token_id]:
            return False
        matcher.accept(token_id)
    return matcher.is_accepting


def call(name, arguments):
    return {"name": name, "arguments": arguments}


_NODE = {"node": {"size": 1, "next": {"size": 2}}}
_CALLS = [call("plain", {"a": 1}), call("tree", _NODE), call("itself", [1, [2]]), call("nothing", {})]
_NO_CALLS = [
    call("other", {"a": 1}),
    call("plain", {"a": "1"}),
    call("tree", {"node": {"size": "1"}}),
    call("tree", {"node": {"size": 1, "next": {}}}),
    call("itself", {"a": 1}),
    {"name": "plain"},
]


class TestLists:
    @pytest.mark.parametrize("value", _CALLS)
    def test_every_function_can_be_called_with_its_own_arguments(self, value):
        assert fits(call_list_schema(_FUNCTIONS, allows_several=True), [value])

    @pytest.mark.parametrize("value", _NO_CALLS)
    def test_nothing_else_can(self, value):
        assert not fits(call_list_schema(_FUNCTIONS, allows_several=True), [value])

    def test_several_only_where_they_are_wanted(self):
        assert fits(call_list_schema(_FUNCTIONS, allows_several=True), _CALLS[:2])
        assert not fits(call_list_schema(_FUNCTIONS, allows_several=False), _CALLS[:2])
        assert not fits(call_list_schema(_FUNCTIONS, allows_several=True), [])


class TestCallsOrAnswers:
    @pytest.mark.parametrize("answer", [_PLAIN, _TREE])
    def test_both_are_let_through(self, answer):
        schema = calls_or_answer_schema(_FUNCTIONS, answer=json.dumps(answer), allows_several=True)
        assert fits(schema, {"a": 1} if answer is _PLAIN else _NODE)
        assert fits(schema, [_CALLS[1]])
        assert not fits(schema, {"b": 1})

    def test_any_object_will_do_where_nothing_more_is_said(self):
        schema = calls_or_answer_schema(_FUNCTIONS, answer="", allows_several=True)
        assert fits(schema, {"b": [1]})
        assert not fits(schema, [1])
