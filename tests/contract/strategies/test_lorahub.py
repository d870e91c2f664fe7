"""LoraHub (2307.13269) as it is served: outputs at learned factors, negative ones among them, against dense updates."""

from __future__ import annotations

import pytest

from hilora.errors import InvalidInput
from tests.builders.strategy_bed import assert_same_logits, mixture, names_of, texts

LEARNED = {"sort-capitals": 0.9, "reverse-letters": -0.4, "double-digits": 0.25, "nobody": 1.2, "sort-digits": 0.0}


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    plan = bed.decide("lorahub", text, question={"learned_weights": LEARNED}).plan
    assert names_of(plan) == ["sort-capitals", "reverse-letters", "double-digits"]
    tokens, logits = bed.answer(plan, text)
    weights = {name: LEARNED[name] for name in names_of(plan)}
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, mixture(weights)))


def test_without_factors_it_says_how_to_get_them(bed):
    with pytest.raises(InvalidInput) as raised:
        bed.decide("lorahub", texts()[0])
    assert raised.value.code == "strategy_needs_weights"
    assert "hilora train lorahub" in raised.value.remedy
