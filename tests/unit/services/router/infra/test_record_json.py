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


@pytest.mark.parametrize("record", [plan_record(), *map(prepared, PreparationMethod)])
def test_what_is_written_is_read(record):
    assert decode_plan(encode_plan(record)) == record


def test_records_of_versions_that_prepared_nothing_are_read():
    fields = json.loads(encode_plan(plan_record()))
    del fields["preparation"]
    assert decode_plan(json.dumps(fields).encode()) == plan_record()


@pytest.mark.parametrize(
    "preparation",
    [{"method": "magic", "num_kept": 1}, {"method": "fusion", "num_kept": 2}, {"method": "lego"}, 7, ["lego"]],
)
def test_what_cannot_be_read_is_forgotten(preparation):
    fields = json.loads(encode_plan(prepared(PreparationMethod.LEGO)))
    assert decode_plan(json.dumps(fields | {"preparation": preparation}).encode()) is None
