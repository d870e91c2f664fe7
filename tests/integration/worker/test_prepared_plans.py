"""Plans that want something done first, over the wire: they answer, report what ran, and refuse contradictions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hilora.errors import InvalidInput
from hilora.routing_plan import PreparationMethod
from hilora_rpc.v1 import routing_pb2, worker_pb2
from services.common.rpc_client import translated_errors

_METHODS = [f"PREPARATION_METHOD_{method.name}" for method in PreparationMethod]


async def _events(stack: Any, plan: routing_pb2.RoutingPlan) -> list[worker_pb2.GenerateEvent]:
    request = worker_pb2.GenerateRequest(
        request_id="r",
        prompt="hello there",
        plan=plan,
        sampling=worker_pb2.SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8),
    )
    with translated_errors("worker"):
        return [event async for event in stack.stub.Generate(request)]


def _plan(stack: Any, method: str, **fields: Any) -> routing_pb2.RoutingPlan:
    plan = stack.plan("a", "b", "c")
    for budget in plan.budgets:
        budget.weight = 1 / 3
    if method != "PREPARATION_METHOD_LOGO":
        plan.gate.basis = routing_pb2.ROC_BASIS_TRAINED
    plan.preparation.method = routing_pb2.PreparationMethod.Value(method)
    for name, value in fields.items():
        setattr(plan.preparation, name, value)
    return plan


def _tokens(events: list[worker_pb2.GenerateEvent]) -> list[int]:
    return [token for event in events for token in event.delta.token_ids]


@pytest.mark.parametrize("method", _METHODS)
async def test_each_answers_the_same_every_time_and_not_as_the_mixture(stack, method) -> None:
    once, twice = [_tokens(await _events(stack, _plan(stack, method))) for _ in range(2)]
    assert once == twice
    assert len(once) == 8


async def test_a_merge_reports_its_sources_and_logo_who_answered(stack) -> None:
    merged = (await _events(stack, _plan(stack, "PREPARATION_METHOD_FUSION")))[-1].finished
    assert [budget.adapter_name for budget in merged.budgets_used] == ["a", "b", "c"]
    asked = (await _events(stack, _plan(stack, "PREPARATION_METHOD_LOGO", num_kept=2)))[-1].finished
    assert len(asked.budgets_used) == 2
    assert sum(budget.weight for budget in asked.budgets_used) == pytest.approx(1.0)


async def test_a_merged_adapter_goes_with_its_source(stack) -> None:
    await _events(stack, _plan(stack, "PREPARATION_METHOD_LEGO"))
    cache = stack.worker._merged
    assert cache.stats().num_adapters == 1
    stack.registry.retire("b")
    for _ in range(200):
        if cache.stats().num_adapters == 0:
            break
        await asyncio.sleep(0.02)
    assert cache.stats().num_adapters == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: setattr(plan.preparation, "method", 0),
        lambda plan: setattr(plan.preparation, "method", 99),
        lambda plan: setattr(plan.preparation, "num_kept", 3),
        lambda plan: setattr(plan.budgets[0], "num_rocs", 1),
        lambda plan: setattr(plan.gate, "rule", routing_pb2.GATE_RULE_SPECTR),
    ],
)
async def test_contradictions_are_refused(stack, change) -> None:
    plan = _plan(stack, "PREPARATION_METHOD_FUSION")
    plan.gate.basis = routing_pb2.ROC_BASIS_SVD
    change(plan)
    with pytest.raises(InvalidInput) as raised:
        await _events(stack, plan)
    assert raised.value.code == "invalid_plan"


async def test_clusters_take_no_negative_weight(stack) -> None:
    plan = _plan(stack, "PREPARATION_METHOD_LEGO")
    plan.budgets[0].weight = -1.0
    with pytest.raises(InvalidInput) as raised:
        await _events(stack, plan)
    assert raised.value.code == "invalid_plan"
    plan.ClearField("preparation")
    assert len(_tokens(await _events(stack, plan))) == 8
