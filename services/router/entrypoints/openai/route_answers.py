"""Decisions as JSON for a person: which adapters run, why, and which of their components acted."""

from __future__ import annotations

from collections.abc import Sequence

from hilora.routing_plan import GateParameters, PlanPreparation, RocBudget, RoutingDecision
from services.router.answer import GenerationFinished, ModuleGating, RouteResult, SessionStanding
from services.router.entrypoints.openai.descriptions import JsonObject


def describe_plan(route: RouteResult, budgets: Sequence[RocBudget]) -> JsonObject:
    """Which adapters run and why.

    Args:
        route: the decision.
        budgets: of those that run, as decided or as the worker reports them.
    """
    decision = route.decision
    return {
        "adapters": [
            {
                "name": budget.adapter_name,
                "adapter_id": budget.adapter_id,
                "num_rocs": budget.num_rocs,
                "lora_rank": budget.lora_rank,
                "weight": budget.weight,
                "reading_weight": budget.weight if budget.reading_weight is None else budget.reading_weight,
            }
            for budget in budgets
        ],
        "mode": decision.mode.value,
        "strategy": route.strategy,
        "is_out_of_distribution": decision.is_out_of_distribution,
        "catalog_generation": decision.plan.catalog_generation,
        "plan_id": route.plan_id,
        "session": describe_session(route.session),
        "reason": decision.reason,
    }


def describe_session(session: SessionStanding | None) -> JsonObject | None:
    """Whether the session's plan was kept, and why; None without a session."""
    if session is None:
        return None
    return {
        "id": session.after.session_id,
        "turn": session.after.turn,
        "is_sticky": session.is_sticky,
        "verdict": session.verdict.value,
        "reason": session.reason,
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
    described = describe_plan(route, decision.plan.budgets)
    return {
        "object": "hilora.route",
        "mode": described["mode"],
        "strategy": described["strategy"],
        "is_out_of_distribution": decision.is_out_of_distribution,
        "reason": decision.reason,
        "candidates": describe_candidates(decision),
        "plan_id": route.plan_id,
        "session": described["session"],
        "plan": {
            "budgets": described["adapters"],
            "num_rocs": decision.plan.num_rocs,
            "gate": _describe_gate(decision.plan.gate),
            "preparation": _describe_preparation(decision.plan.preparation),
            "catalog_generation": decision.plan.catalog_generation,
            "digest": decision.plan.digest,
        },
        "catalog_generation": route.catalog_generation,
        "encoder_id": route.encoder_id,
        "timings": {"encode_seconds": route.encode_seconds, "decide_seconds": route.decide_seconds},
    }


def describe_gating(route: RouteResult, finished: GenerationFinished) -> JsonObject:
    """Which components acted, module by module: at how many tokens each, and the share over an adapter's components."""
    names = {budget.adapter_id: budget.adapter_name for budget in route.decision.plan.budgets}
    return {
        "num_gated_tokens": finished.num_gated_tokens,
        "gating": [_describe_module(module, names, finished.num_gated_tokens) for module in finished.gating],
    }


def _describe_module(module: ModuleGating, names: dict[str, str], num_tokens: int) -> JsonObject:
    return {
        "module_path": module.module_path,
        "adapters": [
            {
                "adapter_id": adapter.adapter_id,
                "name": names.get(adapter.adapter_id, adapter.adapter_id),
                "num_tokens_fired": list(adapter.num_tokens_fired),
                "share": sum(adapter.num_tokens_fired) / max(1, num_tokens * len(adapter.num_tokens_fired)),
            }
            for adapter in module.adapters
        ],
    }


def _describe_preparation(preparation: PlanPreparation | None) -> JsonObject | None:
    return None if preparation is None else {"method": preparation.method.value, "num_kept": preparation.num_kept}


def _describe_gate(gate: GateParameters) -> JsonObject:
    return {
        "rule": gate.rule.value,
        "score": gate.score.value,
        "scope": gate.scope.value,
        "basis": gate.basis.value,
        "eta": gate.eta,
        "top_k": gate.top_k,
        "temperature": gate.temperature,
        "gate_id": gate.gate_id,
    }
