from __future__ import annotations

import json

import pytest

from hilora.routing_plan import PlanPreparation, PreparationMethod, RocBudget, RoutingMode, RoutingPlan
from services.router.infra.record_json import decode_plan, encode_plan
from services.router.plan_record import PlanRecord
from tests.builders.plan_records import plan_record


def prepared(method: PreparationMethod) -> PlanRecord:
    budget = RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=8, num_rocs=8, weight=-0.5)
    num_kept = 0 if method is PreparationMethod.FUSION else 5
    return PlanRecord(
        plan_id="plan-2",
        mode=RoutingMode.CALIBRATED,
        strategy="logo",
        plan=RoutingPlan(budgets=(budget,), preparation=PlanPreparation(method=method, num_kept=num_kept)),
    )


def of_two_phases() -> PlanRecord:
    budgets = (
        RocBudget(adapter_id="a@1", adapter_name="a", lora_rank=8, num_rocs=8, reading_weight=0.25),
        RocBudget(adapter_id="b@1", adapter_name="b", lora_rank=8, num_rocs=8),
    )
    return PlanRecord(
        plan_id="plan-3", mode=RoutingMode.CALIBRATED, strategy="hilora", plan=RoutingPlan(budgets=budgets)
    )


@pytest.mark.parametrize("record", [plan_record(), of_two_phases(), *map(prepared, PreparationMethod)])
def test_what_is_written_is_read(record):
    assert decode_plan(encode_plan(record)) == record


@pytest.mark.parametrize("field", ["preparation", "reading_weights"])
def test_records_of_versions_that_did_not_know_a_field_are_read(field):
    fields = json.loads(encode_plan(plan_record()))
    del fields[field]
    assert decode_plan(json.dumps(fields).encode()) == plan_record()


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.5, 0.5], "ab", ["x", None], 7])
def test_reading_weights_that_fit_no_budgets_are_forgotten(weights):
    fields = json.loads(encode_plan(of_two_phases()))
    assert decode_plan(json.dumps(fields | {"reading_weights": weights}).encode()) is None


@pytest.mark.parametrize(
    "preparation",
    [{"method": "magic", "num_kept": 1}, {"method": "fusion", "num_kept": 2}, {"method": "lego"}, 7, ["lego"]],
)
def test_what_cannot_be_read_is_forgotten(preparation):
    fields = json.loads(encode_plan(prepared(PreparationMethod.LEGO)))
    assert decode_plan(json.dumps(fields | {"preparation": preparation}).encode()) is None
