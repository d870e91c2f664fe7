"""SpectR (2504.03454), written out: every token weighs all adapters by the length of their outputs."""

from __future__ import annotations

import pytest
import torch

from tests.builders.strategy_bed import NAMES, assert_same_logits, delta, names_of, texts


def spectr(path: str, x_TD: torch.Tensor) -> torch.Tensor:
    outputs_TLO = torch.stack([x_TD @ delta(name, path).T for name in NAMES], dim=1)
    weights_TL = torch.softmax(outputs_TLO.norm(dim=2), dim=1)
    return (weights_TL[:, :, None] * outputs_TLO).sum(dim=1)


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    plan = bed.decide("spectr", text, max_candidates=len(NAMES)).plan
    assert sorted(names_of(plan)) == sorted(NAMES)
    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, spectr))
