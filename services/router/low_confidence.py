"""What is done with a text that no adapter explains."""

from __future__ import annotations

from dataclasses import replace

from hilora.errors import LowConfidence
from hilora.routing_plan import RoutingDecision, RoutingPlan
from services.router.routing_options import LowConfidencePolicy


def with_policy(decision: RoutingDecision, policy: LowConfidencePolicy) -> RoutingDecision:
    """The decision that a policy makes of one; it says itself whether an adapter explains the text.

    Raises:
        LowConfidence: with the candidates in its details.
    """
    if not decision.is_out_of_distribution or policy is LowConfidencePolicy.TOP:
        return decision
    if policy is LowConfidencePolicy.REFUSE:
        raise LowConfidence(
            "No adapter explains the text better than a new task would.",
            remedy="Name a model, or set low_confidence to 'base' or 'top'.",
            place="low_confidence",
        ).with_details(
            {
                "candidates": [
                    {
                        "name": candidate.adapter_name,
                        "log_likelihood_ratio": candidate.log_likelihood_ratio,
                        "posterior": candidate.posterior,
                    }
                    for candidate in decision.candidates
                ]
            }
        )
    if decision.plan.is_base_only:
        return decision
    return replace(
        decision,
        plan=RoutingPlan(catalog_generation=decision.plan.catalog_generation),
        candidates=tuple(replace(candidate, num_rocs=0, weight=0.0) for candidate in decision.candidates),
        reason=f"{decision.reason} So the base model answers alone.",
    )
