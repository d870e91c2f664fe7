"""Decisions as protobuf messages and back. Requests and answers: `wire_generation`."""

from __future__ import annotations

from hilora.adapter import RocBasis
from hilora.routing_plan import (
    GateRule,
    GateScope,
    PreparationMethod,
    RocBudget,
    RocScore,
    RoutingDecision,
    RoutingMode,
    RoutingPlan,
)
from hilora_rpc.v1 import router_pb2, routing_pb2
from services.router.answer import RouteResult

_SCORES = {
    RocScore.ACTIVATION: routing_pb2.ROC_SCORE_ACTIVATION,
    RocScore.CONTRIBUTION: routing_pb2.ROC_SCORE_CONTRIBUTION,
}
_SCOPES = {
    GateScope.PER_ADAPTER: routing_pb2.GATE_SCOPE_PER_ADAPTER,
    GateScope.GLOBAL: routing_pb2.GATE_SCOPE_GLOBAL,
}
_RULES = {
    GateRule.ROCS: routing_pb2.GATE_RULE_ROCS,
    GateRule.ARROW: routing_pb2.GATE_RULE_ARROW,
    GateRule.SPECTR: routing_pb2.GATE_RULE_SPECTR,
    GateRule.SEQR: routing_pb2.GATE_RULE_SEQR,
    GateRule.PHATGOOSE: routing_pb2.GATE_RULE_PHATGOOSE,
    GateRule.RAMOLE: routing_pb2.GATE_RULE_RAMOLE,
    GateRule.SMORA: routing_pb2.GATE_RULE_SMORA,
}
_METHODS = {
    PreparationMethod.FUSION: routing_pb2.PREPARATION_METHOD_FUSION,
    PreparationMethod.LEGO: routing_pb2.PREPARATION_METHOD_LEGO,
    PreparationMethod.LOGO: routing_pb2.PREPARATION_METHOD_LOGO,
}
_BASES = {RocBasis.SVD: routing_pb2.ROC_BASIS_SVD, RocBasis.TRAINED: routing_pb2.ROC_BASIS_TRAINED}
_MODES = {
    RoutingMode.PAPER: routing_pb2.ROUTING_MODE_PAPER,
    RoutingMode.CALIBRATED: routing_pb2.ROUTING_MODE_CALIBRATED,
    RoutingMode.EXPLICIT: routing_pb2.ROUTING_MODE_EXPLICIT,
}

SCORES_FROM_WIRE = {value: key for key, value in _SCORES.items()}
"""Scores of components by their wire value, without UNSPECIFIED."""

SCOPES_FROM_WIRE = {value: key for key, value in _SCOPES.items()}
"""Scopes of the gate by their wire value, without UNSPECIFIED."""

MODES_FROM_WIRE = {value: key for key, value in _MODES.items()}
"""Routing modes by their wire value, without UNSPECIFIED."""


def budget_to_wire(budget: RocBudget) -> routing_pb2.RocBudget:
    """One adapter's share."""
    return routing_pb2.RocBudget(
        adapter_id=budget.adapter_id,
        adapter_name=budget.adapter_name,
        lora_rank=budget.lora_rank,
        num_rocs=budget.num_rocs,
        weight=budget.weight,
        reading_weight=budget.reading_weight,
    )


def budget_from_wire(message: routing_pb2.RocBudget) -> RocBudget:
    """One adapter's share. A worker never grants more ROCs than the adapter has, so misuse raises ValueError."""
    return RocBudget(
        adapter_id=message.adapter_id,
        adapter_name=message.adapter_name,
        lora_rank=message.lora_rank,
        num_rocs=message.num_rocs,
        weight=message.weight,
        reading_weight=message.reading_weight if message.HasField("reading_weight") else None,
    )


def plan_to_wire(plan: RoutingPlan) -> routing_pb2.RoutingPlan:
    """A plan as the worker reads it."""
    return routing_pb2.RoutingPlan(
        budgets=[budget_to_wire(budget) for budget in plan.budgets],
        gate=routing_pb2.GateParameters(
            score=_SCORES[plan.gate.score],
            scope=_SCOPES[plan.gate.scope],
            basis=_BASES[plan.gate.basis],
            eta=plan.gate.eta,
            rule=_RULES[plan.gate.rule],
            top_k=plan.gate.top_k,
            temperature=plan.gate.temperature,
            gate_id=plan.gate.gate_id,
        ),
        catalog_generation=plan.catalog_generation,
        preparation=None
        if plan.preparation is None
        else routing_pb2.PlanPreparation(method=_METHODS[plan.preparation.method], num_kept=plan.preparation.num_kept),
    )


def decision_to_wire(decision: RoutingDecision) -> routing_pb2.RoutingDecision:
    """A plan with its reasons."""
    return routing_pb2.RoutingDecision(
        plan=plan_to_wire(decision.plan),
        mode=_MODES[decision.mode],
        candidates=[
            routing_pb2.CandidateScore(
                adapter_id=candidate.adapter_id,
                adapter_name=candidate.adapter_name,
                log_likelihood=candidate.log_likelihood,
                log_likelihood_ratio=candidate.log_likelihood_ratio,
                posterior=candidate.posterior,
                num_rocs=candidate.num_rocs,
                weight=candidate.weight,
            )
            for candidate in decision.candidates
        ],
        is_out_of_distribution=decision.is_out_of_distribution,
        reason=decision.reason,
    )


def route_to_wire(route: RouteResult) -> router_pb2.RouteResponse:
    """A decision and what it took."""
    session = route.session
    return router_pb2.RouteResponse(
        decision=decision_to_wire(route.decision),
        catalog_generation=route.catalog_generation,
        encoder_id=route.encoder_id,
        encode_seconds=route.encode_seconds,
        decide_seconds=route.decide_seconds,
        plan_id=route.plan_id,
        is_sticky=session is not None and session.is_sticky,
        session_reason="" if session is None else session.reason,
        strategy=route.strategy or "",
        session_id="" if session is None else session.after.session_id,
        session_turn=0 if session is None else session.after.turn,
    )
