"""A plan's reasons, in numbers and in one sentence; and the two decisions that choose nothing.

Shapes: C scored adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What is known of a text once the pool is scored: of every allowed adapter, or of the best of them."""

    idx_C: NDArray[np.intp]
    """Places of the adapters in the pool. Where two are equally good, the one that stands first here wins."""
    scores_C: FloatArray
    """Of the mode in use: E3 in `paper`, the predictive log-likelihood in `calibrated`."""
    ratios_C: FloatArray
    """Log-likelihood ratios against a new task."""
    posterior_C: FloatArray
    """Sums to 1 over all allowed adapters."""
    num_allowed: int
    """Adapters that may be chosen."""


def explained_decision(
    plan: RoutingPlan,
    *,
    scores: ScoredPool,
    identity_of: Callable[[int], tuple[str, str]],
    mode: RoutingMode,
    is_unknown: bool,
    num_runners_up: int,
) -> RoutingDecision:
    """The decision for a plan: its adapters, then the best of the others, each group by falling posterior.

    Args:
        plan: the work order.
        scores: of the pool.
        identity_of: gives `adapter_id` and `adapter_name` of the adapter at a place.
        mode: how it was chosen.
        is_unknown: whether no adapter explains the text.
        num_runners_up: adapters to report besides the chosen ones.
    """
    budget_of = {budget.adapter_id: budget for budget in plan.budgets}
    chosen: list[CandidateScore] = []
    others: list[CandidateScore] = []
    idx, posterior = scores.idx_C.tolist(), scores.posterior_C.tolist()
    for place in descending(scores.posterior_C).tolist():
        if len(chosen) == len(budget_of) and len(others) >= num_runners_up:
            break
        adapter_id, adapter_name = identity_of(idx[place])
        budget = budget_of.get(adapter_id)
        if budget is None and len(others) >= num_runners_up:
            continue
        (others if budget is None else chosen).append(
            CandidateScore(
                adapter_id=adapter_id,
                adapter_name=adapter_name,
                log_likelihood=float(scores.scores_C[place]),
                log_likelihood_ratio=float(scores.ratios_C[place]),
                posterior=posterior[place],
                num_rocs=budget.num_rocs if budget else 0,
                weight=budget.weight if budget else 0.0,
            )
        )
    return RoutingDecision(
        plan=plan,
        mode=mode,
        candidates=(*chosen, *others),
        is_out_of_distribution=is_unknown,
        reason=_sentence(chosen, num_allowed=scores.num_allowed, is_unknown=is_unknown),
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
    """A named adapter with all its ROCs at weight 1: what PEFT computes for it."""
    budget = RocBudget(adapter_id=adapter_id, adapter_name=adapter_name, lora_rank=lora_rank, num_rocs=lora_rank)
    plan = RoutingPlan(budgets=(budget,), gate=GateParameters(), catalog_generation=catalog_generation)
    return unscored_decision(plan, reason=f"The request names the adapter {adapter_name}.")


def unscored_decision(plan: RoutingPlan, *, reason: str) -> RoutingDecision:
    """A plan that the client made itself, or had from an earlier answer.

    Nothing was scored, so the likelihoods are 0, and the posterior is the same for each.
    """
    return RoutingDecision(
        plan=plan,
        mode=RoutingMode.EXPLICIT,
        candidates=tuple(
            CandidateScore(
                adapter_id=budget.adapter_id,
                adapter_name=budget.adapter_name,
                log_likelihood=0.0,
                log_likelihood_ratio=0.0,
                posterior=1.0 / len(plan.budgets),
                num_rocs=budget.num_rocs,
                weight=budget.weight,
            )
            for budget in plan.budgets
        ),
        is_out_of_distribution=False,
        reason=reason,
    )
