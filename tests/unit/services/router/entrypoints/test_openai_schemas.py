from __future__ import annotations

import pytest
from pydantic import ValidationError

from hilora.errors import InvalidInput
from hilora.routing_plan import RoutingMode
from services.router.entrypoints.openai_schemas import ChatBody, CompletionBody, RouteBody, refuse_unsupported

_CHAT = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
_COMPLETION = {"model": "auto", "prompt": "x"}


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
        refuse_unsupported(ChatBody.model_validate(_CHAT | fields))

    @pytest.mark.parametrize("value", [0, 1, False, 5])
    def test_the_older_route_s_logprobs_are_a_count(self, value):
        with pytest.raises(InvalidInput):
            refuse_unsupported(CompletionBody.model_validate(_COMPLETION | {"logprobs": value}))

    def test_nan_is_not_neutral(self):
        with pytest.raises(InvalidInput):
            refuse_unsupported(ChatBody.model_validate(_CHAT | {"presence_penalty": float("nan")}))


class TestConversions:
    def test_left_out_parameters_stay_left_out(self):
        sampling = CompletionBody.model_validate(_COMPLETION).sampling()
        assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.stop) == (None, None, None, ())

    @pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, 2**64 - 1), (2**64 - 1, 2**64 - 1)])
    def test_seeds_become_unsigned(self, seed, expected):
        assert CompletionBody.model_validate(_COMPLETION | {"seed": seed}).sampling().seed == expected

    def test_the_newer_limit_wins(self):
        body = ChatBody.model_validate(_CHAT | {"max_tokens": 5, "max_completion_tokens": 7})
        assert body.sampling(max_model_len=100).max_tokens == 7

    def test_options_become_the_router_s(self):
        body = ChatBody.model_validate(
            _CHAT | {"hilora": {"mode": "paper", "gamma": 0.5, "exclude_adapters": ["a", "a"], "seed": 3}}
        )
        options = body.hilora.routing_options(body.model)
        assert options.mode is RoutingMode.PAPER
        assert options.exclude_adapters == {"a"}
        assert (options.gamma, options.seed, options.max_candidates) == (0.5, 3, None)

    def test_turns_that_cannot_be_rendered_are_refused(self):
        for turn in (
            {"role": "tool", "content": "x"},
            {"role": "assistant", "content": "x", "tool_calls": [{}]},
            {"role": "assistant", "content": None},
            {"role": "user", "content": "x", "unknown": 1},
        ):
            with pytest.raises(ValidationError):
                ChatBody.model_validate(_CHAT | {"messages": [turn]})


class TestRouteBody:
    @pytest.mark.parametrize("fields", [{"text": "x"}, {"prompt": "x"}, {"messages": _CHAT["messages"]}])
    def test_any_one_of_three_is_the_text(self, fields):
        assert RouteBody.model_validate(fields).routing_text() == "x"

    @pytest.mark.parametrize("fields", [{}, {"text": "x", "prompt": "x"}])
    def test_none_or_two_are_refused(self, fields):
        with pytest.raises(InvalidInput):
            RouteBody.model_validate(fields).routing_text()
