from __future__ import annotations

import pytest

from hilora.errors import InvalidSamplingParams
from services.worker.engine.sampling.sampling_params import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHOICES,
    MAX_GRAMMAR_LENGTH,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_LENGTH,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
    Grammar,
    GrammarKind,
    SamplingParams,
)


class TestSamplingParams:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_tokens", 0),
            ("max_tokens", 2.0),
            ("max_tokens", True),
            ("min_tokens", -1),
            ("min_tokens", 17),
            ("temperature", -0.1),
            ("temperature", float("nan")),
            ("temperature", float("inf")),
            ("temperature", "1"),
            ("top_p", 0.0),
            ("top_p", 1.01),
            ("top_p", float("nan")),
            ("top_k", -1),
            ("min_p", -0.01),
            ("min_p", 1.01),
            ("min_p", float("nan")),
            ("repetition_penalty", 0.0),
            ("repetition_penalty", 1e-38),
            ("repetition_penalty", 1e38),
            ("repetition_penalty", float("inf")),
            ("presence_penalty", 2.1),
            ("presence_penalty", float("nan")),
            ("frequency_penalty", -2.1),
            ("logit_bias", {1: 100.1}),
            ("logit_bias", {1: float("nan")}),
            ("logit_bias", {-1: 1.0}),
            ("logit_bias", {"1": 1.0}),
            ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0)),
            ("seed", -1),
            ("seed", 2**64),
            ("n", 0),
            ("n", MAX_CHOICES + 1),
            ("best_of", 2),
            ("logprobs", -1),
            ("logprobs", MAX_LOGPROBS + 1),
            ("prompt_logprobs", MAX_LOGPROBS + 1),
            ("stop", ("",)),
            ("stop", ("x" * (MAX_STOP_LENGTH + 1),)),
            ("stop", ("x",) * (MAX_STOP_TEXTS + 1)),
            ("stop_token_ids", (-1,)),
            ("stop_token_ids", (1.5,)),
            ("stop_token_ids", tuple(range(MAX_STOP_TOKEN_IDS + 1))),
        ],
    )
    def test_names_the_field_that_is_out_of_range(self, field, value) -> None:
        with pytest.raises(InvalidSamplingParams) as caught:
            SamplingParams(**{field: value})
        assert caught.value.place == field
        assert caught.value.remedy

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"temperature": 0.0},
            {"temperature": 1},
            {"top_p": 1.0},
            {"min_p": 1.0},
            {"min_tokens": 16},
            {"seed": 2**64 - 1},
            {"stop": ("x",) * MAX_STOP_TEXTS},
            {"top_k": 1},
            {"n": MAX_CHOICES, "best_of": MAX_CHOICES},
            {"logit_bias": {0: -100, 5: 100.0}},
            {"logprobs": 0, "prompt_logprobs": MAX_LOGPROBS},
            {"presence_penalty": -2, "frequency_penalty": 2.0},
        ],
    )
    def test_takes_the_ends_of_each_range(self, values) -> None:
        params = SamplingParams(**values)
        assert params.is_greedy == (params.temperature == 0)

    @pytest.mark.parametrize(
        "values", [{"stop_token_ids": (3, 96)}, {"logit_bias": {96: 1.0}}], ids=["stop_token_ids", "logit_bias"]
    )
    def test_refuses_tokens_that_the_model_does_not_have(self, values) -> None:
        params = SamplingParams(**values)
        with pytest.raises(InvalidSamplingParams) as caught:
            params.check_token_ids(96)
        assert caught.value.place in values
        params.check_token_ids(97)


class TestGrammar:
    @pytest.mark.parametrize(
        ("values", "place"),
        [
            ({"kind": GrammarKind.REGEX}, "grammar.regex"),
            ({"kind": GrammarKind.JSON_SCHEMA}, "grammar.json_schema"),
            ({"kind": GrammarKind.JSON_SCHEMA, "text": "x" * (MAX_GRAMMAR_LENGTH + 1)}, "grammar.json_schema"),
            ({"kind": GrammarKind.CHOICE}, "grammar.choice"),
            ({"kind": GrammarKind.CHOICE, "choices": ("a", "")}, "grammar.choice"),
            ({"kind": GrammarKind.CHOICE, "choices": ("a",) * (MAX_GRAMMAR_CHOICES + 1)}, "grammar.choice"),
            ({"kind": GrammarKind.CHOICE, "choices": ("a" * MAX_GRAMMAR_LENGTH, "b")}, "grammar.choice"),
        ],
    )
    def test_names_the_field_that_is_empty_or_too_large(self, values, place) -> None:
        with pytest.raises(InvalidSamplingParams) as caught:
            Grammar(**values)
        assert caught.value.place == place
