from __future__ import annotations

import pytest
import torch

from services.worker.engine.sampling.logprobs import MIN_LOGPROB, position_logprobs


def test_they_are_the_log_softmax_of_the_logits() -> None:
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(0)) * 3
    token_ids = [(7 * row) % 500 for row in range(40)]
    num_top = [row % 4 for row in range(40)]
    expected = logits.double().log_softmax(dim=-1)
    found = position_logprobs(logits, token_ids, num_top)
    assert len(found) == 40
    for row, position in enumerate(found):
        assert position.chosen.token_id == token_ids[row]
        assert position.chosen.logprob == pytest.approx(float(expected[row, token_ids[row]]), abs=1e-5)
        values, ids = expected[row].topk(num_top[row])
        assert [token.token_id for token in position.top] == ids.tolist()
        assert [token.logprob for token in position.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_of_equals_the_lower_id_comes_first() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 250] = 1.0
    (position,) = position_logprobs(logits, [3], [4])
    assert [token.token_id for token in position.top] == [250, 0, 1, 2]


def test_what_is_impossible_has_a_number_that_json_knows() -> None:
    logits = torch.tensor([[0.0, float("-inf")]])
    (position,) = position_logprobs(logits, [1], [2])
    assert position.chosen.logprob == MIN_LOGPROB
    assert [token.logprob for token in position.top] == [0.0, MIN_LOGPROB]


def test_half_precision_is_widened_first() -> None:
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    (first, _) = position_logprobs(logits, [5, 6], [0, 0])
    assert first.chosen.logprob == pytest.approx(float(logits.double().log_softmax(-1)[0, 5]), abs=1e-5)
