"""Plans of adapters with all their components: what every strategy but HiLoRA's own comes to.

Shapes: C chosen adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.fitted_pool import FittedPool
from hilora.routing_explanation import ScoredPool, base_decision, explained_decision
from hilora.routing_plan import GateParameters, PlanPreparation, RocBudget, RoutingDecision, RoutingPlan
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion


def checked_text(pool: FittedPool, question: RoutingQuestion) -> FloatArray:
    """The question's embedding in float64.

    Raises:
        ValueError: there is none, or it is of another dimension or not finite.
    """
    if question.z_E is None:
        raise ValueError("this strategy reads the text, and the question has no embedding")
    return pool.checked(question.z_E)


def likeliest(router: SequenceRouter, question: RoutingQuestion) -> tuple[FittedPool, ScoredPool] | None:
    """The pool, and of its adapters the likeliest for the text: as many as the settings take for candidates.

    Returns:
        None if no adapter is there or may be chosen.

    Raises:
        ValueError: see `checked_text`.
    """
    pool = router.pool
    if pool is None:
        return None
    nearest = pool.score_nearest(
        checked_text(pool, question),
        num_results=question.settings.max_candidates,
        excluded=pool.excluded_places(question.exclude),
        grams=question.counted_grams,
    )
    return (pool, nearest) if nearest.num_allowed else None


def whole_adapters(
    router: SequenceRouter,
    pool: FittedPool,
    places_C: NDArray[np.intp],
    *,
    question: RoutingQuestion,
    weight: float | Sequence[float],
    gate: GateParameters,
    reason: str,
    preparation: PlanPreparation | None = None,
) -> RoutingDecision:
    """The decision for adapters that take part as wholes, scored by the calibrated model for the reader.

    Args:
        router: who stamps the plan.
        pool: its adapters.
        places_C: the chosen ones, in the plan's order, none excluded.
        question: what is decided; with an embedding.
        weight: factor of each one's output, one for all or one for each.
        gate: the token-level rule.
        reason: one sentence for a person.
        preparation: what the worker makes of them first.
    """
    chosen = [pool.profiles[place] for place in places_C]
    weights = [weight] * len(chosen) if isinstance(weight, int | float) else weight
    plan = RoutingPlan(
        budgets=tuple(
            RocBudget(
                adapter_id=adapter.adapter_id,
                adapter_name=adapter.adapter_name,
                lora_rank=adapter.lora_rank,
                num_rocs=adapter.lora_rank,
                weight=float(factor),
            )
            for adapter, factor in zip(chosen, weights, strict=True)
        ),
        gate=gate,
        catalog_generation=router.catalog_generation,
        preparation=preparation,
    )
    scores = pool.score_nearest(
        checked_text(pool, question),
        num_results=len(places_C) + max(question.num_runners_up, 0),
        excluded=pool.excluded_places(question.exclude),
        grams=question.counted_grams,
        also=places_C,
    )
    decision = explained_decision(
        plan,
        scores=scores,
        identity_of=lambda place: (pool.profiles[place].adapter_id, pool.profiles[place].adapter_name),
        mode=question.settings.mode,
        is_unknown=bool((scores.ratios_C < 0.0).all()),
        num_runners_up=question.num_runners_up,
    )
    return replace(decision, reason=reason)


def nobody_left(router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
    """The base alone, because nobody is there or may be chosen."""
    what = "No adapter is registered" if router.pool is None else "Every adapter is excluded"
    return base_decision(
        catalog_generation=router.catalog_generation,
        mode=question.settings.mode,
        reason=f"{what}: the base model answers alone.",
        is_out_of_distribution=True,
    )


def allowed_places(pool: FittedPool, question: RoutingQuestion) -> NDArray[np.intp]:
    """Places of all adapters that may be chosen, rising."""
    return np.delete(np.arange(len(pool.profiles)), pool.excluded_places(question.exclude))


def names_with_weights(pool: FittedPool, places_C: NDArray[np.intp], weights: Sequence[float]) -> str:
    """The chosen adapters and their factors, for a reason."""
    named = zip(places_C.tolist(), weights, strict=True)
    return ", ".join(f"{weight:.2f} x {pool.profiles[place].adapter_name}" for place, weight in named)
