from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.adapter import RocBasis, adapter_id_of, check_adapter_name
from hilora.errors import InvalidInput
from hilora.routing_plan import (
    GateParameters,
    GateRule,
    GateScope,
    PlanPreparation,
    PreparationMethod,
    RocBudget,
    RocScore,
    RoutingPlan,
)


def budget(**changes) -> RocBudget:
    return replace(RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=8, num_rocs=3), **changes)


class TestBudget:
    @pytest.mark.parametrize("num_rocs", [-1, 9])
    def test_it_stays_within_the_rank(self, num_rocs):
        with pytest.raises(ValueError, match="outside"):
            budget(num_rocs=num_rocs)

    @given(data=st.data(), module_rank=st.integers(0, 64), lora_rank=st.integers(1, 64))
    def test_a_modules_share_is_the_nearest_and_at_least_one(self, data, module_rank, lora_rank):
        num_rocs = data.draw(st.integers(0, lora_rank))
        share = budget(lora_rank=lora_rank, num_rocs=num_rocs).num_rocs_in(module_rank)
        if num_rocs == 0 or module_rank == 0:
            assert share == 0
        else:
            exact = module_rank * num_rocs / lora_rank
            assert share == max(1, int(exact + 0.5))

    def test_the_full_budget_is_full_everywhere(self):
        assert [budget(num_rocs=8).num_rocs_in(rank) for rank in (1, 5, 8)] == [1, 5, 8]


class TestPlan:
    def test_no_budget_is_the_base(self):
        assert RoutingPlan().is_base_only
        assert RoutingPlan(budgets=(budget(num_rocs=0),)).is_base_only
        assert not RoutingPlan(budgets=(budget(),)).is_base_only

    def test_the_budgets_add_up(self):
        assert RoutingPlan(budgets=(budget(), budget(num_rocs=5))).num_rocs == 8

    @pytest.mark.parametrize(
        "other",
        [
            RoutingPlan(budgets=(budget(num_rocs=4),)),
            RoutingPlan(budgets=(budget(weight=0.5),)),
            RoutingPlan(budgets=(budget(reading_weight=0.5),)),
            RoutingPlan(budgets=(budget(reading_weight=1.0),)),
            RoutingPlan(budgets=(budget(adapter_id="a@2"),)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(eta=0.5)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(score=RocScore.CONTRIBUTION)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(scope=GateScope.GLOBAL)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(basis=RocBasis.TRAINED)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(rule=GateRule.ARROW)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(top_k=2)),
            RoutingPlan(budgets=(budget(),), gate=GateParameters(temperature=0.5)),
            RoutingPlan(),
        ],
    )
    def test_whatever_changes_the_arithmetic_changes_the_digest(self, other):
        assert other.digest != RoutingPlan(budgets=(budget(),)).digest

    def test_the_catalogue_generation_does_not(self):
        plan = RoutingPlan(budgets=(budget(),))
        assert replace(plan, catalog_generation=9).digest == plan.digest


class TestPhases:
    TWO = RoutingPlan(
        budgets=(
            budget(weight=0.75, reading_weight=0.25),
            budget(adapter_id="b@1", weight=0.0, reading_weight=-1.0),
            budget(adapter_id="c@1", weight=0.5),
            budget(adapter_id="d@1", weight=0.5, reading_weight=0.0),
        ),
        gate=GateParameters(scope=GateScope.GLOBAL, eta=0.5),
        catalog_generation=4,
    )

    def test_each_has_its_own_factors_and_no_adapter_that_adds_nothing(self):
        reading = [(one.adapter_id, one.weight) for one in self.TWO.reading.budgets]
        writing = [(one.adapter_id, one.weight) for one in self.TWO.writing.budgets]
        assert reading == [("a@1", 0.25), ("b@1", -1.0), ("c@1", 0.5)]
        assert writing == [("a@1", 0.75), ("c@1", 0.5), ("d@1", 0.5)]

    def test_each_is_a_plan_of_one_phase_with_the_rest_as_it_was(self):
        for phase in (self.TWO.reading, self.TWO.writing):
            assert not phase.has_phases
            assert (phase.gate, phase.catalog_generation) == (self.TWO.gate, 4)
        assert len({self.TWO.digest, self.TWO.reading.digest, self.TWO.writing.digest}) == 3

    def test_a_plan_of_one_phase_is_both_and_its_digest_is_what_it_was_before_there_were_any(self):
        plan = RoutingPlan(budgets=(budget(weight=0.5),))
        assert plan.reading is plan
        assert plan.writing is plan
        assert not plan.has_phases
        assert plan.digest == "83656363410efa6034d5f7e1f360edb780d30066420d803a9e3f53f8788aa1c6"

    def test_an_adapter_of_factor_0_stays_in_a_plan_of_one_phase(self):
        plan = RoutingPlan(budgets=(budget(weight=0.0),))
        assert plan.writing.budgets == plan.budgets

    @pytest.mark.parametrize("rule", [GateRule.ARROW, GateRule.SPECTR, GateRule.SEQR])
    def test_a_rule_that_weighs_adapters_itself_knows_none(self, rule):
        with pytest.raises(ValueError, match="reading weights"):
            RoutingPlan(budgets=(budget(reading_weight=0.5),), gate=GateParameters(rule=rule))

    def test_a_plan_that_is_prepared_has_one(self):
        whole = budget(num_rocs=8, reading_weight=0.5)
        with pytest.raises(ValueError, match="one phase"):
            RoutingPlan(budgets=(whole,), preparation=PlanPreparation(method=PreparationMethod.FUSION))


class TestGate:
    def test_the_default_rule_is_by_components(self):
        gate = GateParameters()
        assert (gate.rule, gate.top_k, gate.temperature, gate.gate_id) == (GateRule.ROCS, 0, 1.0, None)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"top_k": -1}, "top_k"),
            ({"temperature": 0.0}, "temperature"),
            ({"temperature": -1.0}, "temperature"),
            ({"temperature": float("inf")}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"rule": GateRule.ARROW, "basis": RocBasis.TRAINED}, "basis"),
            ({"rule": GateRule.SPECTR, "basis": RocBasis.TRAINED}, "basis"),
            ({"rule": GateRule.SEQR, "basis": RocBasis.TRAINED}, "basis"),
            ({"rule": GateRule.SMORA, "basis": RocBasis.SVD, "gate_id": "g@1"}, "basis"),
            ({"rule": GateRule.PHATGOOSE}, "needs a gate_id"),
            ({"rule": GateRule.RAMOLE, "gate_id": ""}, "needs a gate_id"),
            ({"gate_id": "g@1"}, "no use"),
            ({"rule": GateRule.ARROW, "gate_id": "g@1"}, "no use"),
        ],
    )
    def test_contradictions_are_refused(self, changes, word):
        with pytest.raises(ValueError, match=word):
            GateParameters(**changes)

    @pytest.mark.parametrize("rule", [GateRule.PHATGOOSE, GateRule.RAMOLE])
    @pytest.mark.parametrize("basis", RocBasis)
    def test_some_rules_know_both_bases_and_the_gate_is_in_the_digest(self, rule, basis):
        plans = [
            RoutingPlan(budgets=(budget(),), gate=GateParameters(rule=rule, basis=basis, gate_id=gate_id))
            for gate_id in ("g@1", "g@2")
        ]
        assert plans[0].digest != plans[1].digest


class TestNames:
    @pytest.mark.parametrize("name", ["a", "copy-letters", "v1.2_final", "x" * 128])
    def test_safe_names_pass(self, name):
        assert check_adapter_name(name) == name

    @pytest.mark.parametrize("name", ["", "auto", "base", ".hidden", "-x", "a/b", "a b", "ä", "x" * 129, "a\n"])
    def test_others_are_refused(self, name):
        with pytest.raises(InvalidInput) as caught:
            check_adapter_name(name)
        assert caught.value.code == "invalid_adapter_name"

    def test_an_identity_names_the_content(self):
        assert adapter_id_of("copy", "0123456789abcdef") == "copy@0123456789ab"
