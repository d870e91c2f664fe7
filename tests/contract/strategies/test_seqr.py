"""SEQR (2509.18093), written out: the adapter of longest output acts alone, token by token and layer by layer."""

from __future__ import annotations

import pytest
import torch

from tests.builders.strategy_bed import NAMES, assert_same_logits, delta, names_of, texts


def seqr(path: str, x_TD: torch.Tensor) -> torch.Tensor:
    outputs_TLO = torch.stack([x_TD @ delta(name, path).T for name in NAMES], dim=1)
    longest_T = outputs_TLO.norm(dim=2).argmax(dim=1)
    return outputs_TLO[torch.arange(len(x_TD)), longest_T]


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    plan = bed.decide("seqr", text, max_candidates=len(NAMES)).plan
    assert sorted(names_of(plan)) == sorted(NAMES)
    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, seqr))
