from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.plan_preparation import asked_module, asked_plan, merge_recipe, merged_plan, reaction
from hilora.routing_plan import (
    GateParameters,
    GateRule,
    PlanPreparation,
    PreparationMethod,
    RocBudget,
    RoutingPlan,
)


def plan(method: PreparationMethod, *, num_kept: int = 0, names: str = "abc", weight: float = 0.5) -> RoutingPlan:
    return RoutingPlan(
        budgets=tuple(
            RocBudget(adapter_id=f"{name}@1", adapter_name=name, lora_rank=4 + place, num_rocs=4 + place, weight=weight)
            for place, name in enumerate(names)
        ),
        catalog_generation=3,
        preparation=PlanPreparation(method=method, num_kept=num_kept),
    )


def touching(*paths: str) -> DecomposedAdapter:
    rocs = RankOneComponents(a_RD=torch.ones(1, 2), b_RO=torch.ones(1, 2))
    return DecomposedAdapter(basis=RocBasis.SVD, modules=dict.fromkeys(paths, rocs))


class TestMerge:
    def test_identity_follows_what_it_is_made_of_and_not_the_order(self):
        wanted = plan(PreparationMethod.FUSION)
        recipe = merge_recipe(wanted)
        turned = replace(wanted, budgets=wanted.budgets[::-1], catalog_generation=9)
        assert merge_recipe(turned) == recipe
        others = [
            plan(PreparationMethod.LEGO),
            plan(PreparationMethod.FUSION, weight=0.4),
            plan(PreparationMethod.FUSION, names="ab"),
        ]
        assert len({recipe.adapter_id, *(merge_recipe(other).adapter_id for other in others)}) == 4

    @pytest.mark.parametrize(("num_kept", "rank"), [(0, 6), (6, 6), (9, 9)])
    def test_k_is_the_largest_rank_unless_it_is_said(self, num_kept, rank):
        assert merge_recipe(plan(PreparationMethod.LEGO, num_kept=num_kept)).lora_rank == rank

    def test_what_is_left_is_one_adapter_as_a_whole(self):
        wanted = plan(PreparationMethod.LEGO, num_kept=5)
        recipe = merge_recipe(wanted)
        left = merged_plan(wanted, recipe)
        (budget,) = left.budgets
        assert (budget.adapter_id, budget.num_rocs, budget.lora_rank, budget.weight) == (recipe.adapter_id, 5, 5, 1.0)
        assert left.preparation is None
        assert left.gate.basis is RocBasis.TRAINED
        assert left.catalog_generation == 3
        assert left.digest not in {wanted.digest, replace(left, gate=GateParameters()).digest}

    @pytest.mark.parametrize(
        "wrong", [RoutingPlan(), plan(PreparationMethod.LOGO), replace(plan(PreparationMethod.LEGO), budgets=())]
    )
    def test_nothing_to_merge(self, wrong):
        with pytest.raises(ValueError, match="merges nothing"):
            merge_recipe(wrong)


class TestAsking:
    def test_the_strongest_answer_in_proportion(self):
        left = asked_plan(plan(PreparationMethod.LOGO, num_kept=2), {"a@1": 1.0, "b@1": 3.0, "c@1": 2.0})
        assert [(budget.adapter_name, budget.weight) for budget in left.budgets] == [("b", 0.6), ("c", 0.4)]
        assert left.preparation is None

    def test_among_equals_the_plan_s_order_decides_and_nobody_s_reaction_is_equal_parts(self):
        left = asked_plan(plan(PreparationMethod.LOGO, num_kept=2), dict.fromkeys(("a@1", "b@1", "c@1"), 0.0))
        assert [(budget.adapter_name, budget.weight) for budget in left.budgets] == [("a", 0.5), ("b", 0.5)]

    def test_all_answer_where_no_number_is_said(self):
        assert len(asked_plan(plan(PreparationMethod.LOGO), {"a@1": 1.0, "b@1": 3.0, "c@1": 2.0}).budgets) == 3

    @pytest.mark.parametrize(
        ("touched", "heard"),
        [
            (["l.0.q_proj", "l.1.q_proj", "l.1.mlp"], "l.1.q_proj"),
            (["l.0.q_proj", "l.1.mlp"], "l.0.q_proj"),
            (["h.0.c_attn", "h.1.c_attn", "h.1.c_fc"], "h.1.c_attn"),
            (["l.0.mlp", "l.1.mlp"], "l.1.mlp"),
            ([], None),
        ],
    )
    def test_the_last_query_projection_tells(self, touched, heard):
        assert asked_module(["before", *touched, "behind"], [touching(*touched[:1]), touching(*touched)]) == heard

    def test_the_reaction_is_the_length_of_the_output_in_any_basis(self):
        generator = torch.Generator().manual_seed(0)
        a_RD, b_RO, x_D = (torch.randn(*shape, generator=generator) for shape in ((3, 5), (3, 4), (5,)))
        expected = float((b_RO.T @ a_RD @ x_D).norm())
        assert reaction(RankOneComponents(a_RD=a_RD, b_RO=b_RO), x_D) == pytest.approx(expected, rel=1e-5)
        assert reaction(None, x_D) == 0.0


class TestPlans:
    def test_a_prepared_plan_takes_wholes_and_has_no_other_rule(self):
        part = RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=4, num_rocs=3)
        preparation = PlanPreparation(method=PreparationMethod.LOGO)
        with pytest.raises(ValueError, match="wholes"):
            RoutingPlan(budgets=(part,), preparation=preparation)
        with pytest.raises(ValueError, match="rule arrow"):
            RoutingPlan(gate=GateParameters(rule=GateRule.ARROW), preparation=preparation)

    @pytest.mark.parametrize(("method", "num_kept"), [(PreparationMethod.FUSION, 1), (PreparationMethod.LEGO, -1)])
    def test_numbers_that_mean_nothing(self, method, num_kept):
        with pytest.raises(ValueError):
            PlanPreparation(method=method, num_kept=num_kept)

    def test_digests_of_plans_that_are_not_prepared_stay_what_they_were(self):
        assert RoutingPlan().digest == "4a333482a03d8b52a62bc8e93e8e4b25101fc036adb090693505a32bd838b5d9"
