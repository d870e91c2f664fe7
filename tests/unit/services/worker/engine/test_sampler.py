from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import GenerationFailed
from services.worker.engine.sampler import RequestSampler, sample
from services.worker.engine.sampling_params import SamplingParams

_LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, -1.0])


def _draws(params: SamplingParams, logits: torch.Tensor = _LOGITS, num_draws: int = 400) -> list[int]:
    sampler = RequestSampler(params)
    return [sampler.choose(logits) for _ in range(num_draws)]


class TestChoose:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_frequencies_follow_the_softmax(self, temperature) -> None:
        draws = _draws(SamplingParams(temperature=temperature, seed=1), num_draws=20_000)
        found = np.bincount(draws, minlength=5) / len(draws)
        expected = torch.softmax(_LOGITS / temperature, dim=0).numpy()
        # Five standard deviations of a frequency.
        assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / len(draws)) + 1e-9).all()

    def test_top_k_keeps_the_k_likeliest(self) -> None:
        assert set(_draws(SamplingParams(top_k=2, seed=1))) == {1, 3}

    def test_top_p_keeps_the_smallest_set_that_holds_the_mass(self) -> None:
        # Probabilities: 0.61, 0.22, 0.08, 0.05, 0.01 over 1, 3, 0, 2, 4.
        assert set(_draws(SamplingParams(top_p=0.6, seed=1))) == {1}
        assert set(_draws(SamplingParams(top_p=0.7, seed=1))) == {1, 3}
        assert set(_draws(SamplingParams(top_p=0.9, seed=1))) == {0, 1, 3}

    def test_top_k_and_top_p_together(self) -> None:
        assert set(_draws(SamplingParams(top_k=3, top_p=0.7, seed=1))) == {1, 3}
        assert set(_draws(SamplingParams(top_k=1, top_p=0.99, seed=1))) == {1}

    def test_a_tiny_temperature_is_greedy_and_does_not_overflow(self) -> None:
        assert set(_draws(SamplingParams(temperature=1e-300, seed=1))) == {1}

    def test_a_forbidden_token_never_comes(self) -> None:
        logits = _LOGITS.clone()
        logits[1] = float("-inf")
        assert 1 not in _draws(SamplingParams(seed=1), logits)

    @settings(max_examples=80, deadline=None)
    @given(
        logits=st.lists(st.floats(-50, 50), min_size=1, max_size=30),
        temperature=st.floats(0.01, 5),
        top_k=st.integers(0, 40),
        top_p=st.floats(0.01, 1),
        seed=st.integers(0, 2**64 - 1),
    )
    def test_it_always_draws_a_token_within_the_nucleus(self, logits, temperature, top_k, top_p, seed) -> None:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        row = torch.tensor(logits, dtype=torch.float64)
        token = RequestSampler(params).choose(row)
        assert 0 <= token < len(logits)
        likelier = int((row > row[token]).sum())
        if top_k:
            assert likelier < top_k
        mass = torch.softmax(row / temperature, dim=0)
        if not top_k:
            assert float(mass[row > row[token]].sum()) <= top_p + 1e-9


class TestSample:
    def test_rows_keep_to_themselves(self) -> None:
        params = SamplingParams(seed=11)
        alone = _draws(params, num_draws=20)
        sampler = RequestSampler(params)
        other = RequestSampler(SamplingParams(seed=5))
        together = []
        for step in range(20):
            rows = torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(step)), _LOGITS])
            together.append(sample(rows, [other, sampler])[1])
        assert together == alone

    def test_greedy_takes_the_maximum(self) -> None:
        greedy = RequestSampler(SamplingParams(temperature=0))
        assert sample(torch.stack([_LOGITS, -_LOGITS]), [greedy, greedy]) == [1, 4]

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_a_row_that_is_not_finite_fails_alone(self, poison) -> None:
        rows = torch.stack([_LOGITS, _LOGITS, _LOGITS])
        rows[1, 2] = poison
        greedy, drawn = RequestSampler(SamplingParams(temperature=0)), RequestSampler(SamplingParams(seed=1))
        chosen = sample(rows, [greedy, drawn, drawn])
        assert chosen[0] == 1
        assert isinstance(chosen[1], GenerationFailed) and chosen[1].code == "non_finite_logits"
        assert isinstance(chosen[2], int)

    def test_no_rows(self) -> None:
        assert sample(torch.empty(0, 5), []) == []
