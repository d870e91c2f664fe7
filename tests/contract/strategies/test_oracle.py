"""The oracle is PEFT with the adapter that was named; uniform and base are its companions."""

from __future__ import annotations

import pytest

from hilora.errors import InvalidInput, UnknownAdapter
from tests.builders.peft_mixture import mixed_by_peft
from tests.builders.strategy_bed import NAMES, assert_same_logits, names_of, texts


@pytest.mark.parametrize("own", NAMES[::4])
def test_the_oracle_is_peft_s_own_adapter(bed, own):
    text = texts()[3]
    plan = bed.decide("oracle", text, question={"own_adapter": own}).plan
    tokens, logits = bed.answer(plan, text)
    assert names_of(plan) == [own]
    assert_same_logits(logits, mixed_by_peft({own: 1.0}, bed.prompt_ids(text), tokens))


def test_without_the_task_it_says_what_it_needs(bed):
    with pytest.raises(InvalidInput) as raised:
        bed.decide("oracle", texts()[0])
    assert raised.value.code == "strategy_needs_own_adapter"
    assert "hilora.own_adapter" in raised.value.remedy


@pytest.mark.parametrize(("own", "exclude"), [("nobody", ()), (NAMES[0], (NAMES[0],))])
def test_an_adapter_that_is_not_there_is_an_error(bed, own, exclude):
    with pytest.raises(UnknownAdapter) as raised:
        bed.decide("oracle", texts()[0], question={"own_adapter": own, "exclude": frozenset(exclude)})
    assert raised.value.code == "unknown_own_adapter"


@pytest.mark.parametrize("text", texts()[:2])
def test_uniform_is_peft_s_mean_of_all(bed, text):
    plan = bed.decide("uniform", text).plan
    tokens, logits = bed.answer(plan, text)
    weights = dict.fromkeys(NAMES, 1 / len(NAMES))
    assert_same_logits(logits, mixed_by_peft(weights, bed.prompt_ids(text), tokens))


def test_base_is_peft_switched_off(bed):
    text = texts()[0]
    tokens, logits = bed.answer(bed.decide("base", text).plan, text)
    assert_same_logits(logits, mixed_by_peft({}, bed.prompt_ids(text), tokens))
