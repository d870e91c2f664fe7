"""Arrow (2405.11157), written out: every token weighs all adapters by their first right singular vectors."""

from __future__ import annotations

import pytest
import torch

from tests.builders.strategy_bed import NAMES, assert_same_logits, delta, names_of, texts


def arrow(path: str, x_TD: torch.Tensor) -> torch.Tensor:
    scores = []
    for name in NAMES:
        direction = torch.linalg.svd(delta(name, path), full_matrices=False).Vh[0]
        scores.append((x_TD @ direction).abs())
    scores_TL = torch.stack(scores, dim=1)
    best = scores_TL.topk(3, dim=1)
    weights_TL = torch.zeros_like(scores_TL).scatter(1, best.indices, torch.softmax(best.values, dim=1))
    outputs_TLO = torch.stack([x_TD @ delta(name, path).T for name in NAMES], dim=1)
    return (weights_TL[:, :, None] * outputs_TLO).sum(dim=1)


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    plan = bed.decide("arrow", text, max_candidates=len(NAMES)).plan
    assert sorted(names_of(plan)) == sorted(NAMES)
    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, arrow))
