"""A plan's reasons, in numbers and in one sentence; and the two decisions that choose nothing.

Shapes: L adapters of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.candidate_selection import descending
from hilora.covariance import FloatArray
from hilora.routing_plan import (
    CandidateScore,
    GateParameters,
    RocBudget,
    RoutingDecision,
    RoutingMode,
    RoutingPlan,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredPool:
    """What is known of a text once every adapter is scored."""

    scores_L: FloatArray
    """Of the mode in use: E3 in `paper`, the predictive log-likelihood in `calibrated`."""
    ratios_L: FloatArray
    """Log-likelihood ratios against a new task."""
    posterior_L: FloatArray
    """Sums to 1 over the allowed adapters, 0 for the others."""
    allowed: NDArray[np.intp]
    """Indices of the adapters that may be chosen."""


def explained_decision(
    plan: RoutingPlan,
    *,
    scores: ScoredPool,
    identities: Sequence[tuple[str, str]],
    mode: RoutingMode,
    is_unknown: bool,
    num_runners_up: int,
) -> RoutingDecision:
    """The decision for a plan: its adapters, then the best of the others, each group by falling posterior.

    Args:
        plan: the work order.
        scores: of the pool.
        identities: `adapter_id` and `adapter_name` of each adapter, in the order of the scores.
        mode: how it was chosen.
        is_unknown: whether no adapter explains the text.
        num_runners_up: adapters to report besides the chosen ones.
    """
    budget_of = {budget.adapter_id: budget for budget in plan.budgets}
    ordered = [int(scores.allowed[place]) for place in descending(scores.posterior_L[scores.allowed])]
    chosen = [idx for idx in ordered if identities[idx][0] in budget_of]
    others = [idx for idx in ordered if identities[idx][0] not in budget_of]

    def score_of(idx: int) -> CandidateScore:
        adapter_id, adapter_name = identities[idx]
        budget = budget_of.get(adapter_id)
        return CandidateScore(
            adapter_id=adapter_id,
            adapter_name=adapter_name,
            log_likelihood=float(scores.scores_L[idx]),
            log_likelihood_ratio=float(scores.ratios_L[idx]),
            posterior=float(scores.posterior_L[idx]),
            num_rocs=budget.num_rocs if budget else 0,
            weight=budget.weight if budget else 0.0,
        )

    candidates = tuple(score_of(idx) for idx in chosen + others[: max(num_runners_up, 0)])
    return RoutingDecision(
        plan=plan,
        mode=mode,
        candidates=candidates,
        is_out_of_distribution=is_unknown,
        reason=_sentence(candidates[: len(chosen)], num_allowed=len(ordered), is_unknown=is_unknown),
    )


def _sentence(chosen: Sequence[CandidateScore], *, num_allowed: int, is_unknown: bool) -> str:
    names = ", ".join(f"{score.adapter_name} ({score.posterior:.0%})" for score in chosen)
    if is_unknown:
        return f"None of {num_allowed} adapters explains the text better than a new task would; the nearest: {names}."
    if len(chosen) == 1:
        return f"One of {num_allowed} adapters explains the text: {names}."
    return f"{len(chosen)} of {num_allowed} adapters may explain the text: {names}."


def base_decision(
    *,
    catalog_generation: int,
    mode: RoutingMode = RoutingMode.EXPLICIT,
    reason: str = "The request names the base model.",
    is_out_of_distribution: bool = False,
) -> RoutingDecision:
    """The base model alone: because it was named, or because nothing else is there."""
    return RoutingDecision(
        plan=RoutingPlan(catalog_generation=catalog_generation),
        mode=mode,
        candidates=(),
        is_out_of_distribution=is_out_of_distribution,
        reason=reason,
    )


def explicit_decision(
    *, adapter_id: str, adapter_name: str, lora_rank: int, catalog_generation: int
) -> RoutingDecision:
    """A named adapter with all its ROCs at weight 1: what PEFT computes for it.

    Nothing was scored, so the likelihoods are 0 and the posterior is 1.
    """
    budget = RocBudget(adapter_id=adapter_id, adapter_name=adapter_name, lora_rank=lora_rank, num_rocs=lora_rank)
    score = CandidateScore(
        adapter_id=adapter_id,
        adapter_name=adapter_name,
        log_likelihood=0.0,
        log_likelihood_ratio=0.0,
        posterior=1.0,
        num_rocs=lora_rank,
        weight=budget.weight,
    )
    return RoutingDecision(
        plan=RoutingPlan(budgets=(budget,), gate=GateParameters(), catalog_generation=catalog_generation),
        mode=RoutingMode.EXPLICIT,
        candidates=(score,),
        is_out_of_distribution=False,
        reason=f"The request names the adapter {adapter_name}.",
    )
