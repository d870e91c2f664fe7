"""Task-aware composition by a vector database (2602.21222), written out, outputs mixed by PEFT itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.peft_mixture import mixed_by_peft
from tests.builders.strategy_bed import NAMES, assert_same_logits, embed, names_of, samples, softmax, texts


def nucleus(text: str) -> dict[str, float]:
    found = sorted(
        ((float(sample.astype(np.float64) @ embed(text)), name) for name in NAMES for sample in samples()[name]),
        key=lambda pair: -pair[0],
    )[:20]
    mass: dict[str, float] = {}
    for (_, name), share in zip(found, softmax([cosine / 0.05 for cosine, _ in found]), strict=True):
        mass[name] = mass.get(name, 0.0) + float(share)
    kept: dict[str, float] = {}
    for name in sorted(mass, key=lambda name: -mass[name]):
        if sum(kept.values()) >= 0.9:
            break
        kept[name] = mass[name]
    return {name: share / sum(kept.values()) for name, share in kept.items()}


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, text):
    weights = nucleus(text)
    plan = bed.decide("task-vdb", text).plan
    tokens, logits = bed.answer(plan, text)
    assert names_of(plan) == list(weights)
    assert [budget.weight for budget in plan.budgets] == pytest.approx(list(weights.values()), abs=1e-5)
    assert_same_logits(logits, mixed_by_peft(weights, bed.prompt_ids(text), tokens))


def test_the_texts_need_the_nucleus_cut():
    sizes = [len(nucleus(text)) for text in texts()]
    assert max(sizes) > 1
    assert min(sizes) < 9
