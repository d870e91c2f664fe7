"""Prepared plans for benchmarks that drive an engine step by step. A worker's `PlanPreparer` waits instead."""

from __future__ import annotations

from collections.abc import Sequence

from hilora.plan_preparation import asked_module, asked_plan, merge_recipe, merged_plan, reaction
from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.ports import AdapterMerger


def prepared_plan(plan: RoutingPlan, token_ids: Sequence[int], *, engine: Engine, merger: AdapterMerger) -> RoutingPlan:
    """The plan as the engine runs it; the same one if nothing is to be done.

    Args:
        plan: a strategy's.
        token_ids: the prompt.
        engine: not started, or driven by this thread alone: steps are run until it has read the prompt.
        merger: the engine's source of components.

    Raises:
        HiloraError: whatever the engine or the source raises.
    """
    if plan.preparation is None or plan.is_base_only:
        return plan
    if plan.preparation.method.is_merge:
        recipe = merge_recipe(plan)
        merger.announce(recipe)
        return merged_plan(plan, recipe)
    adapters = {budget.adapter_id: merger.fetch(budget.adapter_id, plan.gate.basis) for budget in plan.budgets}
    module_path = asked_module(engine.probes.module_paths, list(adapters.values()))
    if module_path is None:
        return asked_plan(plan, dict.fromkeys(adapters, 0.0))
    answer = engine.probes.ask(token_ids, module_path=module_path)
    while not answer.done():
        engine.run_step()
    x_D = answer.result()
    return asked_plan(
        plan, {adapter_id: reaction(one.modules.get(module_path), x_D) for adapter_id, one in adapters.items()}
    )
