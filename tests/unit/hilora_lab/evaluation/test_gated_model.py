"""The offline arithmetic against PEFT's own, on the shipped pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hilora.adapter import RocBasis
from hilora.routing_plan import GateParameters, RocBudget, RoutingPlan
from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.folder import read_testbed

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"
NAMES = ("reverse-digits", "swap-letters")


@pytest.fixture(scope="module")
def testbed():
    return read_testbed(FOLDER)


@pytest.fixture(scope="module")
def pool(testbed):
    return load_pool(testbed, NAMES)


@pytest.fixture(scope="module")
def adapters(testbed):
    return {name: read_adapter_folder(testbed.adapter_folder(name)) for name in NAMES}


@pytest.fixture(scope="module")
def gated(testbed, adapters):
    return GatedModel(AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval(), adapters)


@pytest.fixture(scope="module")
def input_ids(testbed, pool):
    return pool.tokenizer(testbed.lines_of(NAMES[0], "dev")[0].prompt, return_tensors="pt")["input_ids"]


def plan(adapters, *names, basis=RocBasis.SVD, weight=1.0):
    budgets = tuple(
        RocBudget(
            adapter_id=f"{name}@0",
            adapter_name=name,
            lora_rank=adapters[name].lora_rank,
            num_rocs=adapters[name].lora_rank,
            weight=weight,
        )
        for name in names
    )
    return RoutingPlan(budgets=budgets, gate=GateParameters(basis=basis))


class TestAgainstPeft:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("basis", list(RocBasis))
    def test_a_full_budget_is_the_adapter(self, gated, pool, adapters, input_ids, name, basis):
        with pool.active(name) as model, torch.no_grad():
            expected = model(input_ids=input_ids).logits

        torch.testing.assert_close(
            gated.logits(plan(adapters, name, basis=basis), input_ids), expected, rtol=1e-3, atol=1e-3
        )

    def test_no_candidate_is_the_base(self, gated, pool, input_ids):
        with pool.active(None) as model, torch.no_grad():
            expected = model(input_ids=input_ids).logits

        torch.testing.assert_close(gated.logits(RoutingPlan(), input_ids), expected)

    def test_a_call_leaves_nothing_behind(self, gated, adapters, input_ids):
        before = gated.logits(RoutingPlan(), input_ids)

        changed = gated.logits(plan(adapters, *NAMES, weight=0.5), input_ids)

        assert not torch.allclose(changed, before, atol=1e-2)
        torch.testing.assert_close(gated.logits(RoutingPlan(), input_ids), before)
