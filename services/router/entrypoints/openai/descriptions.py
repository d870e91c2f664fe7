"""What the router knows, as JSON for a person: models, traffic. Decisions: `route_answers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hilora.routing_plan import RocBudget
from services.router.answer import RouteResult
from services.router.models import PublicModel
from services.router.traffic import TrafficReport

JsonObject = dict[str, Any]
"""A JSON object."""


def describe_model(model: PublicModel) -> JsonObject:
    """One line of `GET /v1/models`, with the fields that vLLM added for adapters."""
    return {
        "id": model.model_id,
        "object": "model",
        "created": model.created_at,
        "owned_by": "hilora",
        "root": model.root,
        "parent": model.parent,
        "max_model_len": model.max_model_len,
    }


def describe_traffic(report: TrafficReport) -> JsonObject:
    """`GET /v1/route/stats`."""
    return {
        "object": "hilora.traffic",
        "window_seconds": report.window_seconds,
        "num_decisions": report.num_decisions,
        "adapters": [
            {
                "name": traffic.adapter_name,
                "num_decisions": traffic.num_decisions,
                "share": traffic.share,
                "earlier_share": traffic.earlier_share,
                "alarm": traffic.alarm,
            }
            for traffic in report.adapters
        ],
    }


def answer_headers(route: RouteResult, budgets: Sequence[RocBudget]) -> dict[str, str]:
    """The same in short, for clients that drop unknown fields. `name:num_rocs/weight`, comma-separated."""
    decision = route.decision
    headers = {
        "X-HiLoRA-Adapters": ",".join(
            f"{budget.adapter_name}:{budget.num_rocs}/{budget.weight:.4g}" for budget in budgets
        ),
        "X-HiLoRA-Catalog-Generation": str(decision.plan.catalog_generation),
        "X-HiLoRA-Mode": decision.mode.value,
        "X-HiLoRA-OOD": str(decision.is_out_of_distribution).lower(),
        "X-HiLoRA-Plan": route.plan_id,
    }
    if route.strategy is not None:
        headers["X-HiLoRA-Strategy"] = route.strategy
    if route.session is not None:
        headers["X-HiLoRA-Session"] = route.session.verdict.value
    return headers
