"""Prepared plans in the lab: the same plan that a worker makes, and the same logits."""

from __future__ import annotations

import pytest
import torch

from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from tests.builders.strategy_bed import NAMES, TESTBED, StrategyBed, assert_same_logits, base_model, texts


@pytest.fixture(scope="module")
def bed():
    built = StrategyBed()
    yield built
    built.stop()


@pytest.mark.parametrize("strategy", ["retriever-fusion", "lego", "logo", "hilora", "base"])
def test_the_lab_and_a_worker_make_the_same_of_a_plan(bed, strategy):
    text = texts()[1]
    plan = bed.decide(strategy, text, candidate_mass=1.0).plan
    tokens, logits = bed.answer(plan, text)

    expected = bed.prepared(plan, text)
    gated = GatedModel(base_model().float(), {name: read_adapter_folder(TESTBED / "adapters" / name) for name in NAMES})
    prompt = bed.prompt_ids(text)
    # LoGo asks about what it is given: the prompt alone, and then what was sampled.
    found = gated.logits(plan if strategy != "logo" else expected, torch.tensor([prompt + tokens[:-1]]))
    assert_same_logits(logits, found[0, len(prompt) - 1 :])


def test_the_lab_asks_the_base_about_the_prompt(bed):
    text = texts()[2]
    plan = bed.decide("logo", text).plan
    gated = GatedModel(base_model().float(), {name: read_adapter_folder(TESTBED / "adapters" / name) for name in NAMES})
    prompt = torch.tensor([bed.prompt_ids(text)])
    expected = gated.logits(bed.prepared(plan, text), prompt)
    torch.testing.assert_close(gated.logits(plan, prompt), expected, rtol=1e-4, atol=1e-4)
