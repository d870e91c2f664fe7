"""Adapters that a client puts together itself."""

from __future__ import annotations

import math

from hilora.access import Requester
from hilora.errors import InvalidInput
from hilora.routing_explanation import unscored_decision
from hilora.routing_plan import GateParameters, GateScope, RocBudget, RocScore, RoutingDecision, RoutingPlan
from services.router.catalog import CatalogView
from services.router.models import ModelDirectory
from services.router.plans import excluded_and_wanted
from services.router.routing_options import MAX_COMPOSED_ADAPTERS, MAX_SCALE, ComposedAdapter, RoutingOptions


def composed_decision(
    options: RoutingOptions, *, models: ModelDirectory, view: CatalogView, requester: Requester
) -> RoutingDecision:
    """The plan of `options.adapters`: `sum_i scale_i * (the adapter's kept components)`.

    With all components the outputs are summed exactly; one adapter at scale 1 is what naming it as the model gives.
    Each adapter's budget is its own unless `gate_scope` says otherwise.

    Raises:
        UnknownAdapter: `model_not_found`.
        InvalidInput: `too_many_adapters`, `duplicate_adapter`, `invalid_scale`, `invalid_num_rocs`, `excluded_model`.
    """
    wanted = options.adapters
    if len(wanted) > MAX_COMPOSED_ADAPTERS:
        raise InvalidInput(
            f"{len(wanted)} adapters are put together.",
            code="too_many_adapters",
            remedy=f"Send at most {MAX_COMPOSED_ADAPTERS}.",
            place="adapters",
        )
    budgets: dict[str, RocBudget] = {}
    for item in wanted:
        budget = _budget(item, models=models, view=view, requester=requester)
        if budget.adapter_id in budgets:
            raise InvalidInput(
                f"The adapter {budget.adapter_id!r} stands in the list twice.",
                code="duplicate_adapter",
                remedy="Send it once, with the sum of its scales.",
                place="adapters",
            )
        if budget.adapter_name in options.exclude_adapters:
            raise excluded_and_wanted(budget.adapter_name, "adapters")
        budgets[budget.adapter_id] = budget
    acting = tuple(budget for budget in budgets.values() if budget.num_rocs > 0)
    gate = GateParameters(
        score=options.roc_score or RocScore.ACTIVATION, scope=options.gate_scope or GateScope.PER_ADAPTER
    )
    plan = RoutingPlan(budgets=acting, gate=gate, catalog_generation=view.catalog_generation)
    names = ", ".join(f"{budget.weight:g} x {budget.adapter_name}" for budget in acting)
    return unscored_decision(plan, reason=f"The request puts adapters together: {names or 'none that acts'}.")


def _budget(item: ComposedAdapter, *, models: ModelDirectory, view: CatalogView, requester: Requester) -> RocBudget:
    adapter = models.adapter(item.model, view, requester)
    if not (math.isfinite(item.scale) and abs(item.scale) <= MAX_SCALE):
        raise InvalidInput(
            f"The scale of {item.model!r} is {item.scale:g}.",
            code="invalid_scale",
            remedy=f"Send a number within {MAX_SCALE:g} of 0.",
            place="adapters.scale",
        )
    num_rocs = adapter.lora_rank if item.num_rocs is None else item.num_rocs
    if not 0 <= num_rocs <= adapter.lora_rank:
        raise InvalidInput(
            f"{num_rocs} components of {item.model!r} are asked for.",
            code="invalid_num_rocs",
            remedy=f"It has {adapter.lora_rank}: send 0 to {adapter.lora_rank}, or leave num_rocs out.",
            place="adapters.num_rocs",
        )
    return RocBudget(
        adapter_id=adapter.adapter_id,
        adapter_name=adapter.adapter_name,
        lora_rank=adapter.lora_rank,
        num_rocs=num_rocs,
        weight=item.scale,
    )
