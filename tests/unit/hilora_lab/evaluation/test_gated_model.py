"""The offline arithmetic against PEFT's own and against the rules' definitions, on the shipped pool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hilora.adapter import RocBasis
from hilora.decomposition import decompose
from hilora.errors import InvalidInput, UnknownAdapter
from hilora.learned_gate import LearnedGate
from hilora.reference import reference_kept
from hilora.reference_adaptive import reference_adaptive_update, reference_alphas
from hilora.routing_plan import GateParameters, GateRule, GateScope, RocBudget, RocScore, RoutingPlan
from hilora_lab.evaluation.gated_model import GatedModel, read_adapter_folder
from hilora_lab.evaluation.module_update import ModuleUpdate
from hilora_lab.testbed.adapter_pool import load_pool
from hilora_lab.testbed.folder import read_testbed
from tests.builders.gates import ADAPTIVE_RULES, make_adaptive_plan, make_gate

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


@pytest.fixture(scope="module")
def gates(adapters):
    """A gate of each learned rule, for all of both adapters' layers."""
    ranks = {
        f"{name}@0": {path: factors.lora_rank for path, factors in adapter.modules.items()}
        for name, adapter in adapters.items()
    }
    shapes = {
        path: (factors.lora_a.shape[1], factors.lora_b.shape[0])
        for adapter in adapters.values()
        for path, factors in adapter.modules.items()
    }
    rules = [rule for rule in GateRule if rule.is_learned]
    return {
        f"{rule.value}-gate@1": make_gate(rule, ranks=ranks, shapes=shapes, seed=idx) for idx, rule in enumerate(rules)
    }


def adaptive_plan(adapters, rule, *names, **changes):
    given = [(f"{name}@0", adapters[name].lora_rank, 0.6) for name in names or NAMES]
    found = make_adaptive_plan(rule, given, **changes)
    named = tuple(replace(one, adapter_name=one.adapter_id.removesuffix("@0")) for one in found.budgets)
    return replace(found, budgets=named)


def one_layer(adapters, wanted):
    """A layer that both adapters change: its path, their components, and some inputs."""
    path = next(iter(adapters[NAMES[0]].modules))
    rocs = [decompose(adapters[name], basis=wanted.gate.basis).modules[path] for name in NAMES]
    x_TD = torch.randn(7, rocs[0].a_RD.shape[1], generator=torch.Generator().manual_seed(4))
    return path, rocs, x_TD


class TestRules:
    @pytest.mark.parametrize("top_k", [0, 1])
    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_a_layers_update_is_that_of_the_rules_definition(self, adapters, gates, rule, top_k):
        wanted = adaptive_plan(adapters, rule, top_k=top_k, temperature=0.7, eta=1.5)
        path, rocs, x_TD = one_layer(adapters, wanted)
        learned = gates[wanted.gate.gate_id].modules[path] if wanted.gate.gate_id else None

        update = ModuleUpdate(wanted, rocs, learned=learned, place=path)

        expected = reference_adaptive_update(
            x_TD.double(),
            candidates=[replace(one, a_RD=one.a_RD.double(), b_RO=one.b_RO.double()) for one in rocs],
            adapter_ids=[one.adapter_id for one in wanted.budgets],
            weights=[one.weight for one in wanted.budgets],
            gate=wanted.gate,
            learned=learned,
        )
        torch.testing.assert_close(update(x_TD).double(), expected, rtol=1e-3, atol=1e-4)

    def test_budgets_limit_the_components_of_the_chosen_adapters(self, adapters):
        wanted = adaptive_plan(
            adapters, GateRule.ARROW, score=RocScore.CONTRIBUTION, scope=GateScope.GLOBAL, temperature=0.5
        )
        wanted = replace(wanted, budgets=tuple(replace(one, num_rocs=2) for one in wanted.budgets))
        path, rocs, x_TD = one_layer(adapters, wanted)
        weights = [one.weight for one in wanted.budgets]
        budgets = [one.num_rocs_in(of.num_rocs) for one, of in zip(wanted.budgets, rocs, strict=True)]
        expected = torch.zeros(len(x_TD), rocs[0].b_RO.shape[1])
        for row, x_D in enumerate(x_TD):
            alphas = reference_alphas(x_D, candidates=rocs, adapter_ids=NAMES, gate=wanted.gate)
            kept = reference_kept(x_D, candidates=rocs, budgets=budgets, weights=weights, gate=wanted.gate)
            for owner, idx in kept:
                response = torch.dot(rocs[owner].a_RD[idx], x_D)
                expected[row] += weights[owner] * alphas[owner] * response * rocs[owner].b_RO[idx]

        found = ModuleUpdate(wanted, rocs, learned=None, place=path)(x_TD)

        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("rule", ADAPTIVE_RULES)
    def test_a_models_answer_follows_the_plans_rule(self, testbed, adapters, gates, input_ids, rule):
        model = AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval()
        ruled = GatedModel(model, adapters, gates=gates)
        plain = ruled.logits(plan(adapters, *NAMES, weight=0.6), input_ids)

        assert not torch.allclose(ruled.logits(adaptive_plan(adapters, rule), input_ids), plain, atol=1e-2)

    @pytest.mark.parametrize("rule", [GateRule.ARROW, GateRule.SPECTR, GateRule.SEQR, GateRule.PHATGOOSE])
    def test_one_adapter_has_nobody_to_share_with(self, testbed, adapters, gates, input_ids, rule):
        model = AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval()
        ruled = GatedModel(model, adapters, gates=gates)
        alone = adaptive_plan(adapters, rule, NAMES[0])

        expected = ruled.logits(plan(adapters, NAMES[0], weight=0.6), input_ids)

        torch.testing.assert_close(ruled.logits(alone, input_ids), expected, rtol=1e-3, atol=1e-3)

    def test_a_learned_rule_without_its_gate_is_refused(self, gated, adapters, input_ids):
        before = gated.logits(RoutingPlan(), input_ids)

        with pytest.raises(UnknownAdapter) as caught:
            gated.logits(adaptive_plan(adapters, GateRule.SMORA), input_ids)

        assert caught.value.code == "unknown_gate"
        torch.testing.assert_close(gated.logits(RoutingPlan(), input_ids), before)

    def test_a_gate_of_another_rule_is_refused(self, testbed, adapters, gates, input_ids):
        model = AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval()
        ruled = GatedModel(model, adapters, gates=gates)
        with pytest.raises(InvalidInput) as caught:
            ruled.logits(adaptive_plan(adapters, GateRule.SMORA, gate_id="ramole-gate@1"), input_ids)
        assert caught.value.code == "gate_rule_mismatch"

    @pytest.mark.parametrize("rule", [rule for rule in GateRule if rule.is_learned])
    def test_a_gate_that_lacks_a_layer_is_refused(self, testbed, adapters, gates, input_ids, rule):
        whole = gates[f"{rule.value}-gate@1"]
        some = LearnedGate(rule=rule, modules=dict(list(whole.modules.items())[:1]))
        model = AutoModelForCausalLM.from_pretrained(testbed.base_folder).eval()
        with pytest.raises(InvalidInput) as caught:
            GatedModel(model, adapters, gates={"some@1": some}).logits(
                adaptive_plan(adapters, rule, gate_id="some@1"), input_ids
            )
        assert caught.value.code == "gate_shape_mismatch"


class TestPhases:
    def test_what_comes_before_the_prompts_last_token_is_read(self, gated, adapters, input_ids):
        both = plan(adapters, *NAMES)
        two = replace(
            both,
            budgets=tuple(
                replace(one, weight=weight, reading_weight=1.0)
                for one, weight in zip(both.budgets, (1.0, 0.0), strict=True)
            ),
        )
        num_prompt = input_ids.shape[1] - 3
        found = gated.logits(two, input_ids, num_prompt_tokens=num_prompt)
        read, written = gated.logits(two.reading, input_ids), gated.logits(two.writing, input_ids)
        # Causal: a position knows nothing of the phase after it.
        assert torch.allclose(found[:, : num_prompt - 1], read[:, : num_prompt - 1], atol=1e-5)
        assert not torch.allclose(found[:, num_prompt - 1 :], read[:, num_prompt - 1 :], atol=1e-3)
        assert not torch.allclose(found[:, num_prompt - 1 :], written[:, num_prompt - 1 :], atol=1e-3)

    def test_equal_phases_are_one(self, gated, adapters, input_ids):
        one = plan(adapters, NAMES[0], weight=0.5)
        two = replace(one, budgets=tuple(replace(budget, reading_weight=0.5) for budget in one.budgets))
        assert torch.allclose(gated.logits(two, input_ids), gated.logits(one, input_ids), atol=1e-5)
