"""LoGo (2511.07129), written out: the base reads the prompt, the last query projection tells who answers."""

from __future__ import annotations

import pytest
import torch

from hilora.errors import InvalidInput
from tests.builders.strategy_bed import (
    NAMES,
    assert_same_logits,
    base_model,
    delta,
    mixture,
    names_of,
    texts,
)

LAST_QUERY = "model.layers.3.self_attn.q_proj"


def weights_by_reaction(prompt: list[int]) -> dict[str, float]:
    model = base_model()
    heard = {}

    def listen(_module, inputs):
        heard["x"] = inputs[0][0, -1]

    model.get_submodule(LAST_QUERY).register_forward_pre_hook(listen)
    with torch.inference_mode():
        model(input_ids=torch.tensor([prompt]))
    reactions = {name: float((delta(name, LAST_QUERY) @ heard["x"]).norm()) for name in NAMES}
    strongest = sorted(reactions, key=lambda name: -reactions[name])[:3]
    total = sum(reactions[name] for name in strongest)
    return {name: reactions[name] / total for name in strongest}


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    prompt = bed.prompt_ids(text)
    assert len(prompt) > 8, "the prompt is read in several chunks"
    weights = weights_by_reaction(prompt)
    plan = bed.decide("logo", text).plan
    assert sorted(names_of(plan)) == sorted(NAMES)

    prepared = bed.prepared(plan, text)
    tokens, logits = bed.answer(plan, text)

    assert names_of(prepared) == list(weights)
    assert [budget.weight for budget in prepared.budgets] == pytest.approx(list(weights.values()), abs=1e-5)
    assert_same_logits(logits, plain.logits(prompt, tokens, mixture(weights)))


def test_who_answers_depends_on_the_prompt(bed):
    assert len({tuple(weights_by_reaction(bed.prompt_ids(text)).values()) for text in texts()}) == len(texts())


def test_prompts_are_refused_as_requests_are(bed):
    plan = bed.decide("logo", texts()[0]).plan
    with pytest.raises(InvalidInput) as raised:
        bed.prepared(plan, "x " * 200)
    assert raised.value.code == "prompt_too_long"
