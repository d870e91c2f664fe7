"""LoraRetriever (2402.09997), `selection` and `mixture`, by PEFT itself. Its `fusion` is in `test_retriever_fusion`."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.peft_mixture import mixed_by_peft
from tests.builders.strategy_bed import NAMES, assert_same_logits, embed, means, names_of, texts


@pytest.mark.parametrize("text", texts())
@pytest.mark.parametrize(("strategy", "k"), [("retriever-selection", 1), ("retriever-mixture", 3)])
def test_logits_equal_peft_s(bed, text, strategy, k):
    nearest = np.argsort(-(means() @ embed(text).astype(np.float64)))[:k]
    weights = {NAMES[place]: 1.0 / k for place in nearest}
    plan = bed.decide(strategy, text).plan
    tokens, logits = bed.answer(plan, text)
    assert names_of(plan) == list(weights)
    assert_same_logits(logits, mixed_by_peft(weights, bed.prompt_ids(text), tokens))
