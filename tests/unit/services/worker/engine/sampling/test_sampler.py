from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import GenerationFailed
from services.worker.engine.sampling.bucketed_row import BucketedRow
from services.worker.engine.sampling.request_sampler import RequestSampler
from services.worker.engine.sampling.sampler import SampledToken, sample
from services.worker.engine.sampling.sampling_params import SamplingParams

_LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, -1.0])


def _draws(params: SamplingParams, logits: torch.Tensor = _LOGITS, num_draws: int = 400, **knows) -> list[int]:
    sampler = RequestSampler(params, **knows)
    tokens = [sample(logits[None], [sampler])[0] for _ in range(num_draws)]
    assert all(isinstance(token, SampledToken) for token in tokens)
    return [token.token_id for token in tokens]


def _kept(logits_V: torch.Tensor, params: SamplingParams) -> tuple[list[int], list[float]]:
    """The slow way: tokens that may be drawn, likeliest first, and their probabilities."""
    scores = logits_V.double().numpy() / params.temperature
    order = sorted(range(len(scores)), key=lambda idx: (-scores[idx], idx))
    weights = np.exp(scores[order] - scores[order[0]])
    num_kept = int((weights >= params.min_p).sum()) if params.min_p else len(order)
    num_kept = min(num_kept, params.top_k or num_kept)
    if params.top_p < 1:
        shares = weights[:num_kept].cumsum() / weights[:num_kept].sum()
        num_kept = int((shares < params.top_p - 1e-7).sum()) + 1
    weights = weights[:num_kept] / weights[:num_kept].sum()
    return order[:num_kept], weights.tolist()


def _assert_fits(draws: list[int], token_ids: list[int], probabilities: list[float]) -> None:
    """Only these tokens, and as often as their probabilities say: five standard deviations of each frequency."""
    assert set(draws) <= set(token_ids)
    found = np.array([draws.count(token_id) for token_id in token_ids]) / len(draws)
    expected = np.array(probabilities)
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / len(draws)) + 1e-9).all()


def _large_row(num_tokens: int, *, scale: float = 3.0, num_values: int | None = None) -> torch.Tensor:
    row = torch.randn(num_tokens, generator=torch.Generator().manual_seed(num_tokens)) * scale
    return row if num_values is None else (row * num_values).round() / num_values


class TestFrequencies:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_follow_the_softmax(self, temperature) -> None:
        params = SamplingParams(temperature=temperature, seed=1)
        _assert_fits(_draws(params, num_draws=2500), *_kept(_LOGITS, params))

    @pytest.mark.parametrize(
        "limits",
        [
            {"top_k": 3},
            {"top_p": 0.9},
            {"min_p": 0.1},
            {"top_k": 3, "top_p": 0.7},
            {"min_p": 0.1, "top_k": 2, "top_p": 0.99, "temperature": 2.0},
        ],
    )
    def test_follow_what_the_limits_leave(self, limits) -> None:
        params = SamplingParams(**limits, seed=2)
        _assert_fits(_draws(params, num_draws=1500), *_kept(_LOGITS, params))

    def test_of_a_large_vocabulary_pass_a_chi_square_test(self) -> None:
        from scipy.stats import chisquare

        row = _large_row(3000, scale=1.0)
        draws = np.array(_draws(SamplingParams(seed=5), row, num_draws=2500))
        # Every token is too rare to be counted by itself.
        groups = np.arange(3000) % 20
        expected = np.bincount(groups, weights=row.double().softmax(0).numpy()) * len(draws)
        assert chisquare(np.bincount(groups[draws], minlength=20), expected).pvalue > 1e-3


@pytest.mark.parametrize("num_values", [None, 2], ids=["distinct", "many equal"])
@pytest.mark.parametrize(
    "limits",
    [
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 2000},
        {"top_p": 0.05},
        {"top_p": 0.9},
        {"top_p": 0.9999},
        {"min_p": 0.2},
        {"min_p": 1e-6},
        {"min_p": 0.001, "top_k": 700, "top_p": 0.95},
        {"top_k": 500, "top_p": 0.5, "temperature": 0.7},
        {"min_p": 0.001, "top_p": 0.5},
        {"top_k": 2000, "top_p": 0.5, "temperature": 2.0},
    ],
    ids=str,
)
def test_extreme_numbers_give_the_first_and_the_last_token_that_the_limits_keep(limits, num_values) -> None:
    row = _large_row(5000, num_values=num_values)
    params = SamplingParams(**limits, seed=1)
    token_ids, probabilities = _kept(row, params)
    ids_in_order = _kept(row, replace(params, top_p=1.0))[0]
    sampler = RequestSampler(params)
    places = np.cumsum(probabilities)
    for random in (0.0, 1e-9, 0.3, 0.77, 1 - 2**-53):
        sampler.next_random = lambda random=random: random
        (token,) = sample(row[None], [sampler])
        found = ids_in_order.index(token.token_id)
        expected = min(int(np.searchsorted(places, random, side="right")), len(places) - 1)
        # Weights are float32: a point, and the end of the nucleus, may move by a millionth of the mass.
        mass_between = sum(probabilities[min(found, expected) : max(found, expected)])
        assert mass_between < 1e-6 and found < len(token_ids) + 2, (random, found, expected)


class TestLimits:
    def test_top_k_keeps_the_k_likeliest(self) -> None:
        assert set(_draws(SamplingParams(top_k=2, seed=1))) == {1, 3}

    def test_top_p_keeps_the_smallest_set_that_holds_the_mass(self) -> None:
        # Probabilities: 0.61, 0.22, 0.08, 0.05, 0.01 over 1, 3, 0, 2, 4.
        assert set(_draws(SamplingParams(top_p=0.6, seed=1))) == {1}
        assert set(_draws(SamplingParams(top_p=0.7, seed=1))) == {1, 3}
        assert set(_draws(SamplingParams(top_p=0.9, seed=1))) == {0, 1, 3}

    def test_min_p_is_relative_to_the_likeliest(self) -> None:
        # Relative to token 1: 1, 0.37, 0.14, 0.08, 0.02.
        assert set(_draws(SamplingParams(min_p=0.1, seed=1))) == {0, 1, 3}
        assert set(_draws(SamplingParams(min_p=1.0, seed=1))) == {1}

    def test_top_p_looks_at_what_top_k_left(self) -> None:
        assert set(_draws(SamplingParams(top_k=3, top_p=0.7, seed=1))) == {1, 3}
        assert set(_draws(SamplingParams(top_k=1, top_p=0.99, seed=1))) == {1}

    def test_a_tiny_temperature_is_greedy_and_does_not_overflow(self) -> None:
        for limits in ({}, {"top_p": 0.9}, {"min_p": 0.1}):
            assert set(_draws(SamplingParams(temperature=1e-300, seed=1, **limits))) == {1}

    @pytest.mark.parametrize("limits", [{}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 1e-9}], ids=str)
    def test_an_impossible_token_never_comes(self, limits) -> None:
        for row in (_LOGITS.clone(), _large_row(1000)):
            row[3:] = -math.inf
            assert set(_draws(SamplingParams(seed=1, **limits), row, num_draws=100)) <= {0, 1, 2}

    @settings(max_examples=80, deadline=None)
    @given(
        logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=200),
        temperature=st.floats(0.01, 5),
        top_k=st.integers(0, 40),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        seed=st.integers(0, 2**64 - 1),
    )
    def test_it_always_draws_a_token_that_the_limits_keep(self, logits, temperature, top_k, top_p, min_p, seed) -> None:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        row = torch.tensor(logits, dtype=torch.float32)
        (token,) = _draws(params, row, num_draws=1)
        weight = torch.exp((row.double() - row.max()) / temperature)
        likelier = weight > weight[token]
        assert weight[token] >= min_p * (1 - 1e-6)
        if top_k:
            assert int(likelier.sum()) < top_k
        possible = weight * (weight >= min_p)
        total = possible.sum() if not top_k else possible.sort(descending=True).values[:top_k].sum()
        assert float(possible[likelier].sum() / total) <= top_p + 1e-6


class TestBucketedRow:
    @pytest.mark.parametrize("limits", [{}, {"top_k": 7}, {"min_p": 1e-40}, {"top_p": 0.5, "min_p": 0.01}], ids=str)
    def test_equals_sorting(self, limits) -> None:
        row = _large_row(2000, scale=20.0)
        params = SamplingParams(**limits)
        token_ids, probabilities = _kept(row, params)
        buckets = BucketedRow((row - row.max()).numpy())
        places = np.cumsum(probabilities)
        for random in np.linspace(0, 0.999, 37):
            assert buckets.draw(params, random) == token_ids[int(np.searchsorted(places, random, side="right"))]


class TestRules:
    def test_logit_bias_is_added(self) -> None:
        greedy = SamplingParams(temperature=0, logit_bias={4: 100.0, 1: -100})
        assert set(_draws(greedy, num_draws=3)) == {4}
        assert set(_draws(SamplingParams(logit_bias={0: 1.75}, seed=1, top_k=2))) == {0, 1}

    def test_min_tokens_hold_back_end_and_stop_tokens(self) -> None:
        params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(3,))
        assert _draws(params, num_draws=3, eos_token_ids=frozenset({1})) == [0, 0, 1]
        ignoring = SamplingParams(temperature=0, min_tokens=2, ignore_eos=True)
        assert _draws(ignoring, num_draws=1, eos_token_ids=frozenset({1})) == [1]

    def test_penalties_know_the_prompt_and_every_token_since(self) -> None:
        params = SamplingParams(temperature=0, presence_penalty=1.5)
        assert _draws(params, num_draws=4, prompt_token_ids=(3,)) == [1, 3, 1, 1]
        params = SamplingParams(temperature=0, repetition_penalty=10.0)
        assert _draws(params, num_draws=3, prompt_token_ids=(1,)) == [3, 0, 2]

    def test_penalties_come_after_biases(self) -> None:
        # 1 + 3 = 4 is halved, not 1 halved and 3 added: token 1 with 3 wins.
        params = SamplingParams(temperature=0, logit_bias={0: 3.0}, repetition_penalty=2.0)
        assert _draws(params, num_draws=1, prompt_token_ids=(0,)) == [1]

    def test_rules_leave_the_models_logits_as_they_are(self) -> None:
        logits = _LOGITS.clone()
        params = SamplingParams(temperature=0, logit_bias={0: 3.0}, presence_penalty=2.0, min_tokens=5, logprobs=1)
        sampler = RequestSampler(params, eos_token_ids=frozenset({1}))
        for _ in range(3):
            (token,) = sample(logits[None], [sampler])
            assert token.logprob is not None
            assert token.logprob.logprob == pytest.approx(float(_LOGITS.log_softmax(0)[token.token_id]), abs=1e-6)
            assert [top.token_id for top in token.top_logprobs] == [1]
        assert torch.equal(logits, _LOGITS)


class TestSample:
    @pytest.mark.parametrize("limits", [{}, {"top_p": 0.9}, {"min_p": 0.01}, {"top_k": 30}, {"presence_penalty": 1.0}])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rows_keep_to_themselves(self, limits, dtype) -> None:
        row = _large_row(777).to(dtype)
        params = SamplingParams(seed=11, **limits)
        alone = _draws(params, row, num_draws=20)
        sampler = RequestSampler(params)
        others = [RequestSampler(SamplingParams(seed=5, top_p=0.7)), RequestSampler(SamplingParams(temperature=0))]
        together = []
        for step in range(20):
            noise = torch.randn(2, 777, generator=torch.Generator().manual_seed(step)).to(dtype)
            together.append(sample(torch.stack([noise[0], row, noise[1]]), [others[0], sampler, others[1]])[1].token_id)
        assert together == alone

    def test_rows_treated_together_as_on_a_gpu_choose_the_same(self, monkeypatch) -> None:
        rules = [
            {},
            {"top_p": 0.8},
            {"temperature": 0.0, "presence_penalty": 1.0},
            {"top_k": 40, "repetition_penalty": 1.2},
            {"temperature": 0.0, "logprobs": 2},
            {"min_p": 0.05, "logit_bias": {3: 5.0}},
            {"top_p": 0.99, "temperature": 3.0},
            {"top_k": 1500, "top_p": 0.05, "temperature": 2.5},
        ]
        rows = torch.stack([_large_row(3001 + idx)[:3001] for idx in range(len(rules))])

        def play() -> list[list[SampledToken]]:
            samplers = [RequestSampler(SamplingParams(seed=4, **rule), prompt_token_ids=(1, 2)) for rule in rules]
            return [sample(rows, samplers) for _ in range(40)]

        one_by_one = play()
        monkeypatch.setattr(
            "services.worker.engine.sampling.sampler.row_groups",
            lambda num_rows, device: [slice(0, num_rows)] * (num_rows > 0),
        )
        assert play() == one_by_one

    def test_seeds_repeat_and_differ(self) -> None:
        row = _large_row(500, scale=1.0)
        first, again, other = (_draws(SamplingParams(seed=seed), row, num_draws=20) for seed in (1, 1, 2))
        assert first == again != other

    def test_greedy_takes_the_maximum(self) -> None:
        greedy = RequestSampler(SamplingParams(temperature=0))
        chosen = sample(torch.stack([_LOGITS, -_LOGITS]), [greedy, greedy])
        assert chosen == [SampledToken(token_id=1), SampledToken(token_id=4)]

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_a_row_that_is_not_finite_fails_alone(self, poison) -> None:
        rows = torch.stack([_LOGITS, _LOGITS, _LOGITS])
        rows[1, 2] = poison
        greedy, drawn = RequestSampler(SamplingParams(temperature=0)), RequestSampler(SamplingParams(seed=1))
        chosen = sample(rows, [greedy, drawn, drawn])
        assert chosen[0] == SampledToken(token_id=1)
        assert isinstance(chosen[1], GenerationFailed) and chosen[1].code == "non_finite_logits"
        assert isinstance(chosen[2], SampledToken)

    def test_logprobs_are_told_to_those_who_ask(self) -> None:
        samplers = [RequestSampler(SamplingParams(temperature=0, logprobs=logprobs)) for logprobs in (None, 0, 2)]
        silent, alone, both = sample(torch.stack([_LOGITS] * 3), samplers)
        assert (silent.logprob, silent.top_logprobs) == (None, ())
        assert alone.logprob == both.logprob and alone.top_logprobs == ()
        assert [token.token_id for token in both.top_logprobs] == [1, 3]

    def test_no_rows(self) -> None:
        assert sample(torch.empty(0, 5), []) == []
