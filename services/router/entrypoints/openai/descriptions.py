"""What the router decided and knows, as JSON for a person: plans, candidates, models, traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hilora.routing_plan import RocBudget, RoutingDecision
from services.router.answer import RouteResult
from services.router.models import PublicModel
from services.router.traffic import TrafficReport

JsonObject = dict[str, Any]
"""A JSON object."""


def describe_plan(decision: RoutingDecision, budgets: Sequence[RocBudget]) -> JsonObject:
    """Which adapters run and why, for a person."""
    return {
        "adapters": [
            {
                "name": budget.adapter_name,
                "adapter_id": budget.adapter_id,
                "num_rocs": budget.num_rocs,
                "lora_rank": budget.lora_rank,
                "weight": budget.weight,
            }
            for budget in budgets
        ],
        "mode": decision.mode.value,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "catalog_generation": decision.plan.catalog_generation,
        "reason": decision.reason,
    }


def describe_candidates(decision: RoutingDecision) -> list[JsonObject]:
    """The scores behind a plan: the chosen adapters first, then the runners-up."""
    return [
        {
            "name": candidate.adapter_name,
            "adapter_id": candidate.adapter_id,
            "log_likelihood": candidate.log_likelihood,
            "log_likelihood_ratio": candidate.log_likelihood_ratio,
            "posterior": candidate.posterior,
            "num_rocs": candidate.num_rocs,
            "weight": candidate.weight,
        }
        for candidate in decision.candidates
    ]


def describe_route(route: RouteResult) -> JsonObject:
    """The answer of `POST /v1/route`."""
    decision = route.decision
    gate = decision.plan.gate
    return {
        "object": "hilora.route",
        "mode": decision.mode.value,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "reason": decision.reason,
        "candidates": describe_candidates(decision),
        "plan": {
            "budgets": describe_plan(decision, decision.plan.budgets)["adapters"],
            "num_rocs": decision.plan.num_rocs,
            "gate": {
                "score": gate.score.value,
                "scope": gate.scope.value,
                "basis": gate.basis.value,
                "eta": gate.eta,
            },
            "catalog_generation": decision.plan.catalog_generation,
            "digest": decision.plan.digest,
        },
        "catalog_generation": route.catalog_generation,
        "encoder_id": route.encoder_id,
        "timings": {"encode_seconds": route.encode_seconds, "decide_seconds": route.decide_seconds},
    }


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


def answer_headers(decision: RoutingDecision, budgets: Sequence[RocBudget]) -> dict[str, str]:
    """The same in short, for clients that drop unknown fields. `name:num_rocs/weight`, comma-separated."""
    return {
        "X-HiLoRA-Adapters": ",".join(
            f"{budget.adapter_name}:{budget.num_rocs}/{budget.weight:.4g}" for budget in budgets
        ),
        "X-HiLoRA-Catalog-Generation": str(decision.plan.catalog_generation),
        "X-HiLoRA-Mode": decision.mode.value,
        "X-HiLoRA-OOD": str(decision.is_out_of_distribution).lower(),
    }
