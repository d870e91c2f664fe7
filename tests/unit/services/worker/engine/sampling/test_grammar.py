"""Constrained answers of random models: whatever the logits say, the text fits the grammar."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import GenerationFailed, HiloraError, InvalidInput
from services.worker.engine.sampling.grammar import GrammarCompiler
from services.worker.engine.sampling.request_sampler import RequestSampler
from services.worker.engine.sampling.sampler import SampledToken, sample
from services.worker.engine.sampling.sampling_params import Grammar, GrammarKind, SamplingParams
from services.worker.models.token_vocabulary import TokenVocabulary
from tests.builders.tokenizers import TOKENIZERS

_EOS = 1
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}


@cache
def _compiler(kind: str) -> GrammarCompiler:
    tokenizer = TOKENIZERS[kind]()
    return GrammarCompiler(TokenVocabulary(tokenizer, len(tokenizer)), eos_token_ids=frozenset({_EOS}))


def _answer(
    kind: str, grammar: Grammar, *, seed: int = 0, max_tokens: int = 200, **sampling
) -> tuple[str, SampledToken | HiloraError]:
    """The text that a model with random logits says under the grammar, and its last token."""
    tokenizer = TOKENIZERS[kind]()
    params = SamplingParams(**{"seed": seed, "max_tokens": max_tokens, **sampling})
    matcher = _compiler(kind).compile(grammar)
    sampler = RequestSampler(params, eos_token_ids=frozenset({_EOS}), grammar=matcher)
    generator = torch.Generator().manual_seed(seed)
    token_ids = []
    for _ in range(max_tokens):
        (token,) = sample(torch.randn(1, len(tokenizer), generator=generator) * 2, [sampler])
        if isinstance(token, HiloraError):
            break
        token_ids.append(token.token_id)
        if token.completes_grammar or token.token_id == _EOS:
            break
    return tokenizer.decode(token_ids, skip_special_tokens=True), token


def _choice(*texts: str) -> Grammar:
    return Grammar(kind=GrammarKind.CHOICE, choices=texts)


def _regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


def _schema(schema: object) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(schema))


@pytest.mark.parametrize("kind", list(TOKENIZERS))
class TestEveryTokenizer:
    def test_a_choice_is_one_of_them(self, kind) -> None:
        texts = ("a b", "a . b", "漢字 a", "é")
        answers = {_answer(kind, _choice(*texts), seed=seed)[0] for seed in range(12)}
        assert answers <= set(texts) and len(answers) > 1

    def test_a_choice_that_another_one_goes_on_from_may_end(self, kind) -> None:
        answers = {_answer(kind, _choice("a", "a b"), seed=seed)[0] for seed in range(12)}
        assert answers == {"a", "a b"}

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10_000))
    def test_a_regex_matches_the_whole_answer(self, kind, seed) -> None:
        pattern = r"(a|b)( [ab.,]){2,4}( 漢字)?"
        text, token = _answer(kind, _regex(pattern), seed=seed)
        assert isinstance(token, SampledToken)
        assert re.fullmatch(pattern, text), text

    def test_json_follows_its_schema(self, kind) -> None:
        schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
        for seed in range(5):
            assert json.loads(_answer(kind, _schema(schema), seed=seed)[0]) == {"a": 1}


class TestJson:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10_000))
    def test_random_tokens_make_values_of_the_schema(self, seed) -> None:
        text, token = _answer("byte-level", _schema(_SCHEMA), seed=seed, max_tokens=400)
        value = json.loads(text)
        assert set(value) == {"name", "size"} and len(value["name"]) <= 5 and 0 <= value["size"] <= 99
        assert token.completes_grammar or token.token_id == _EOS

    def test_an_object_begins_like_one(self) -> None:
        text, token = _answer("byte-level", Grammar(kind=GrammarKind.JSON_OBJECT), max_tokens=30)
        assert text.startswith("{") and isinstance(token, SampledToken)


class TestEnd:
    def test_a_complete_grammar_needs_no_end_of_sequence(self) -> None:
        _, token = _answer("byte-level", _choice("a"))
        assert token.completes_grammar and token.token_id != _EOS

    def test_the_end_is_allowed_only_where_the_grammar_is(self) -> None:
        matcher = _compiler("byte-level").compile(_regex("ab?"))
        sampler = RequestSampler(SamplingParams(temperature=0), eos_token_ids=frozenset({_EOS}), grammar=matcher)
        logits = torch.zeros(1, len(TOKENIZERS["byte-level"]()))
        logits[0, _EOS] = 5.0
        first, second = (sample(logits, [sampler])[0] for _ in range(2))
        assert (first.token_id != _EOS, second.token_id) == (True, _EOS)

    def test_ignoring_the_end_lets_the_grammar_alone_decide(self) -> None:
        answers = {_answer("byte-level", _regex("ab{0,3}"), seed=seed, ignore_eos=True)[0] for seed in range(6)}
        assert answers == {"abbb"}

    def test_a_text_that_no_token_writes_ends_the_request_with_its_reason(self) -> None:
        _, token = _answer("words", _choice("a x"))
        assert isinstance(token, GenerationFailed) and token.code == "grammar_dead_end"

    def test_rules_that_contradict_the_grammar_end_the_request(self) -> None:
        stop = TOKENIZERS["byte-level"]()("b")["input_ids"][0]
        _, token = _answer("byte-level", _choice("b"), stop_token_ids=(stop,), min_tokens=2)
        assert isinstance(token, GenerationFailed) and token.code == "grammar_dead_end"

    def test_a_dead_end_leaves_the_rows_beside_it_alone(self) -> None:
        tokenizer = TOKENIZERS["words"]()
        eos = frozenset({_EOS})
        stuck = RequestSampler(
            SamplingParams(seed=1), eos_token_ids=eos, grammar=_compiler("words").compile(_choice("x"))
        )
        fine = RequestSampler(SamplingParams(seed=1), eos_token_ids=eos)
        first, second = sample(torch.zeros(2, len(tokenizer)), [stuck, fine])
        assert isinstance(first, GenerationFailed) and isinstance(second, SampledToken)


class TestCompiler:
    @pytest.mark.parametrize(
        ("grammar", "reason"),
        [
            (_regex("a(b"), "unclosed group"),
            (_regex("(?=a)b"), "look-ahead"),
            (_schema({"type": "thing"}), "thing"),
            (_schema({"$ref": "https://example.com/x.json"}), "example.com"),
            (_schema([1]), "schema must be"),
            (_schema(False), "nsatisfiable"),
            (Grammar(kind=GrammarKind.JSON_SCHEMA, text="{"), "line 1"),
            (Grammar(kind=GrammarKind.JSON_SCHEMA, text="[" * 60_000), "nested"),
            (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"items":' * 3000 + "{}" + "}" * 3000), "nested"),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_says_why_a_grammar_cannot_be_used(self, grammar, reason) -> None:
        with pytest.raises(InvalidInput) as caught:
            _compiler("byte-level").compile(grammar)
        assert caught.value.code == "invalid_grammar" and caught.value.place == "grammar"
        assert reason in caught.value.message and "start:" not in caught.value.message

    def test_answers_of_one_grammar_go_their_own_ways(self) -> None:
        first, second = (_compiler("byte-level").compile(_choice("ab", "cd")) for _ in range(2))
        tokenizer = TOKENIZERS["byte-level"]()
        a, c = tokenizer("a")["input_ids"][0], tokenizer("c")["input_ids"][0]
        first.accept(a)
        assert not first.allowed_tokens()[c]
        assert second.allowed_tokens()[[a, c]].all()

    def test_a_token_that_was_not_allowed_is_refused(self) -> None:
        matcher = _compiler("byte-level").compile(_choice("ab"))
        with pytest.raises(GenerationFailed) as caught:
            matcher.accept(TOKENIZERS["byte-level"]()("z")["input_ids"][0])
        assert caught.value.code == "grammar_failed"

    def test_slashes_quotes_and_line_breaks_mean_themselves(self) -> None:
        assert _answer("byte-level", _regex('a/b"\n'))[0] == 'a/b"\n'
        assert _answer("byte-level", _choice('a/"\\\n'))[0] == 'a/"\\\n'

    @pytest.mark.parametrize("character", ["\x00", "\x1f", "\x7f", "\u2028"])
    def test_characters_that_are_not_printed_mean_themselves(self, character) -> None:
        assert _answer("byte-level", _choice(f"a{character}b"))[0] == f"a{character}b"

    def test_keeps_only_so_many(self) -> None:
        compiler = GrammarCompiler(TokenVocabulary(TOKENIZERS["words"](), 13), eos_token_ids=frozenset({_EOS}))
        for number in range(80):
            compiler.compile(_regex(f"a{{{number + 1}}}"))
        assert len(compiler._compiled) == 64
