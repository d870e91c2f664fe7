"""LORAUTER (2601.21795), written out: nearest task means, softmax at 0.2, outputs mixed by PEFT itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.peft_mixture import mixed_by_peft
from tests.builders.strategy_bed import NAMES, assert_same_logits, embed, means, names_of, softmax, texts


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, text):
    cosines = means() @ embed(text).astype(np.float64)
    nearest = np.argsort(-cosines)[:3]
    weights = dict(zip([NAMES[place] for place in nearest], softmax(cosines[nearest] / 0.2), strict=True))

    plan = bed.decide("lorauter", text).plan
    tokens, logits = bed.answer(plan, text)

    assert names_of(plan) == list(weights)
    assert [budget.weight for budget in plan.budgets] == pytest.approx(list(weights.values()), abs=1e-6)
    assert_same_logits(logits, mixed_by_peft(weights, bed.prompt_ids(text), tokens))
