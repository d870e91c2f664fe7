"""Against transformers, whose definition of the repetition penalty is the common one, and against the formula."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.sampling.penalties import Penalties
from services.worker.engine.sampling.sampling_params import SamplingParams

_TOKENS = st.lists(st.integers(0, 19), max_size=12)


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(20, generator=torch.Generator().manual_seed(seed)) * 5


def _penalised(params: SamplingParams, prompt: list[int], answer: list[int], logits: torch.Tensor) -> torch.Tensor:
    penalties = Penalties(params, prompt)
    for token_id in answer:
        penalties.count(token_id)
    changed = logits.clone()
    penalties.apply_(changed)
    return changed


@settings(max_examples=80, deadline=None)
@given(prompt=_TOKENS, answer=_TOKENS, factor=st.sampled_from([0.5, 1.3, 2.0]), seed=st.integers(0, 99))
def test_repetition_is_that_of_transformers(prompt, answer, factor, seed) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = _logits(seed)
    found = _penalised(SamplingParams(repetition_penalty=factor), prompt, answer, logits)
    if not prompt + answer:
        assert torch.equal(found, logits)
        return
    input_ids = torch.tensor([prompt + answer])
    expected = RepetitionPenaltyLogitsProcessor(penalty=factor)(input_ids, logits[None].clone())[0]
    torch.testing.assert_close(found, expected)


@settings(max_examples=80, deadline=None)
@given(
    prompt=_TOKENS,
    answer=_TOKENS,
    presence=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency=st.sampled_from([-1.0, 0.0, 0.4]),
    repetition=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 99),
)
def test_presence_and_frequency_count_the_answer_alone(prompt, answer, presence, frequency, repetition, seed) -> None:
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition)
    logits = _logits(seed)
    found = _penalised(params, prompt, answer, logits)
    for token_id, logit in enumerate(logits.tolist()):
        expected = logit
        if token_id in prompt + answer:
            expected = logit / repetition if logit > 0 else logit * repetition
        count = answer.count(token_id)
        assert abs(float(found[token_id]) - (expected - frequency * count - presence * (count > 0))) < 1e-4
