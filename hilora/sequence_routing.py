"""Sequence-level routing: from the embedding of a request's text to the adapters that answer it, once per request.

    score the adapters  ->  choose candidates  ->  grant ROC budgets  ->  a frozen plan with its reasons

A text that no adapter explains may ask for two skills that have an adapter each: then both are granted (`skill_pairs`).

`RoutingMode.CALIBRATED` and `RoutingMode.PAPER` share this road and differ in `RoutingSettings`.

Shapes: C candidates, E embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hilora.budget_allocation import (
    candidate_weights,
    largest_remainder_counts,
    multinomial_counts,
    total_budget,
    variance_factor,
)
from hilora.calibration import softmax
from hilora.candidate_selection import descending, mass_candidates, threshold_candidates
from hilora.character_grams import GramIds
from hilora.fitted_pool import NUM_HALVES, AdapterProfile, FittedPool
from hilora.gaussian_index import DenseGaussianIndex, GaussianIndex, IndexBuilder
from hilora.routing_explanation import ScoredPool, base_decision, explained_decision, explicit_decision
from hilora.routing_plan import GateParameters, RocBudget, RoutingDecision, RoutingMode, RoutingPlan
from hilora.routing_settings import BudgetRule, RoutingSettings, ScoreRule, UnknownTaskRule
from hilora.skill_pairs import SkillPair

__all__ = ["AdapterProfile", "RoutingSettings", "SequenceRouter", "base_decision", "explicit_decision"]


class SequenceRouter:
    """A pool, fitted. Immutable to its callers and safe to share between threads.

    The calibrated model is fitted by the constructor; the paper's Gaussians at the first request that asks for them.

    Args:
        profiles: the pool in any order; the order never matters.
        catalog_generation: what every plan is stamped with.
        build_index: makes what the calibrated mode searches.

    Raises:
        ValueError: an adapter twice, one without samples or ranks, unequal dimensions, values that are not finite.
    """

    def __init__(
        self,
        profiles: Sequence[AdapterProfile],
        *,
        catalog_generation: int,
        build_index: IndexBuilder = DenseGaussianIndex,
    ) -> None:
        self._pool = FittedPool.fit(profiles, build_index=build_index) if profiles else None
        self._catalog_generation = catalog_generation

    @property
    def num_adapters(self) -> int:
        """Size of the pool."""
        return 0 if self._pool is None else len(self._pool.profiles) - len(self._pool.superseded)

    @property
    def adapter_names(self) -> frozenset[str]:
        """Names that a text may be routed to unless they are excluded."""
        return frozenset() if self._pool is None else self._pool.names

    @property
    def pool(self) -> FittedPool | None:
        """The fitted adapters, for strategies that choose by rules of their own; None for an empty pool."""
        return self._pool

    @property
    def counts_grams(self) -> bool:
        """Whether it makes a difference how a text is written."""
        return self._pool is not None and self._pool.stack is not None

    @property
    def num_newcomers(self) -> int:
        """Adapters that came after the fit."""
        return 0 if self._pool is None else len(self._pool.profiles) - self._pool.num_fitted

    @property
    def catalog_generation(self) -> int:
        """The catalogue this router knows."""
        return self._catalog_generation

    @property
    def temperature(self) -> float | None:
        """The fitted temperature of the posterior; None for an empty pool."""
        return None if self._pool is None else self._pool.model.temperature

    @property
    def index(self) -> GaussianIndex | None:
        """What the calibrated mode searches; None for an empty pool."""
        return None if self._pool is None else self._pool.index

    def extended(self, newcomers: Sequence[AdapterProfile], *, catalog_generation: int) -> SequenceRouter:
        """The same fit with adapters that came after it: at once, where a new fit would take seconds.

        The newcomers are placed by the covariances of the fit. One that bears the name of a fitted adapter takes its
        place. `RoutingMode.PAPER` knows them after the next fit only.

        Args:
            newcomers: all that came since the fit, not only since the last extension.
            catalog_generation: what every plan is stamped with.

        Raises:
            ValueError: like the constructor; or this pool is empty and has no fit to extend.
        """
        if self._pool is None:
            raise ValueError("an empty pool has no fit that could be extended")
        router = SequenceRouter([], catalog_generation=catalog_generation)
        router._pool = self._pool.extended(newcomers)
        return router

    def prepare_like(self, earlier: SequenceRouter) -> None:
        """Work out ahead what requests asked of an earlier fit; milliseconds for each adapter that was asked for."""
        if self._pool is not None and earlier.pool is not None:
            self._pool.prepare_like(earlier.pool)

    def decide(
        self,
        z_E: NDArray[np.floating],
        *,
        settings: RoutingSettings,
        request_seed: int = 0,
        exclude: frozenset[str] = frozenset(),
        num_runners_up: int = 5,
        grams: GramIds | None = None,
        text: str | None = None,
    ) -> RoutingDecision:
        """Choose adapters and budgets for one text.

        Args:
            z_E: the text's embedding, a unit vector of the pool's encoder.
            settings: the rules.
            request_seed: decides the draws of `BudgetRule.MULTINOMIAL`; without effect otherwise.
            exclude: names of adapters that must not be chosen; the posterior is that of the others.
            num_runners_up: adapters to report besides the chosen ones.
            grams: how the text is written (`gram_ids`); without them the calibrated mode goes by the embedding alone.
            text: the text itself; without it nothing is said of two skills in it.

        Returns:
            The plan with its reasons. An empty pool gives the base alone, and says so.

        Raises:
            ValueError: an embedding of another dimension, or with values that are not finite.
        """
        pool = self._pool
        if pool is None:
            return self._base_alone("No adapter is registered", settings)
        excluded = pool.excluded_places(exclude)
        z_E = pool.checked(z_E)
        if settings.mode is RoutingMode.PAPER:
            scores = pool.score_all(z_E, settings=settings, excluded=excluded)
            choose = _paper_candidates
        else:
            num_results = max(settings.min_candidates, settings.max_candidates) + max(num_runners_up, 0)
            if _combines(settings):
                num_results = max(num_results, NUM_HALVES)
            stacked = grams if settings.score_rule is ScoreRule.STACKED else None
            scores = pool.score_nearest(z_E, num_results=num_results, excluded=excluded, grams=stacked)
            choose = _calibrated_candidates
        if not scores.num_allowed:
            return self._base_alone("Every adapter is excluded", settings)
        chosen, is_unknown = choose(scores, settings=settings)
        pair: SkillPair | None = None
        if is_unknown and text is not None and grams is not None and _combines(settings):
            pair = pool.skill_pair(text, grams, scores.idx_C[:NUM_HALVES])
        if pair is None:
            plan = self._grant(chosen, scores, pool=pool, settings=settings, request_seed=request_seed)
        else:
            plan = self._of_both(pool.profiles[pair.first], pool.profiles[pair.second], settings)
        decision = explained_decision(
            plan,
            scores=scores,
            identity_of=lambda idx: (pool.profiles[idx].adapter_id, pool.profiles[idx].adapter_name),
            mode=settings.mode,
            is_unknown=is_unknown,
            num_runners_up=num_runners_up,
        )
        if pair is None:
            return decision
        first, second = (budget.adapter_name for budget in plan.budgets)
        return replace(
            decision,
            reason=(
                f"None of {scores.num_allowed} adapters explains the text, and two do together: it asks for the skills "
                f"of {first} and then {second}, so both read it and the first one answers."
            ),
        )

    def _of_both(self, first: AdapterProfile, second: AdapterProfile, settings: RoutingSettings) -> RoutingPlan:
        """Read with both adapters as wholes, written by the first."""
        return RoutingPlan(
            budgets=tuple(
                RocBudget(
                    adapter_id=adapter.adapter_id,
                    adapter_name=adapter.adapter_name,
                    lora_rank=adapter.lora_rank,
                    num_rocs=adapter.lora_rank,
                    weight=weight,
                    reading_weight=1.0,
                )
                for adapter, weight in ((first, 1.0), (second, 0.0))
            ),
            gate=GateParameters(score=settings.roc_score, scope=settings.gate_scope, basis=settings.basis),
            catalog_generation=self._catalog_generation,
        )

    def _base_alone(self, reason: str, settings: RoutingSettings) -> RoutingDecision:
        return base_decision(
            catalog_generation=self._catalog_generation,
            mode=settings.mode,
            reason=f"{reason}: the base model answers alone.",
            is_out_of_distribution=True,
        )

    def _grant(
        self,
        chosen: NDArray[np.intp],
        scores: ScoredPool,
        *,
        pool: FittedPool,
        settings: RoutingSettings,
        request_seed: int,
    ) -> RoutingPlan:
        adapters = [pool.profiles[idx] for idx in scores.idx_C[chosen]]
        ranks = [adapter.lora_rank for adapter in adapters]
        budget = total_budget(ranks, gamma=settings.gamma, confidence_following=settings.confidence_following)
        if settings.budget_rule is BudgetRule.MULTINOMIAL:
            shares_C = softmax(scores.scores_C[chosen])
            counts = multinomial_counts(
                ranks, shares_C=shares_C, budget=budget, rng=np.random.default_rng(request_seed)
            )
        else:
            budget = max(budget, len(ranks))
            counts = largest_remainder_counts(ranks, shares_C=scores.posterior_C[chosen], budget=budget)
        weights = candidate_weights(scores.posterior_C[chosen], rule=settings.weight_rule)
        return RoutingPlan(
            budgets=tuple(
                RocBudget(
                    adapter_id=adapter.adapter_id,
                    adapter_name=adapter.adapter_name,
                    lora_rank=adapter.lora_rank,
                    num_rocs=count,
                    weight=weight,
                )
                for adapter, count, weight in zip(adapters, counts, weights, strict=True)
                if count
            ),
            gate=GateParameters(
                score=settings.roc_score,
                scope=settings.gate_scope,
                basis=settings.basis,
                eta=variance_factor(ranks, budget=budget, rule=settings.eta_rule),
            ),
            catalog_generation=self._catalog_generation,
        )


def _combines(settings: RoutingSettings) -> bool:
    return (
        settings.combine_skills
        and settings.mode is RoutingMode.CALIBRATED
        and settings.score_rule is ScoreRule.STACKED
        and settings.max_candidates >= 2
    )


def _paper_candidates(scores: ScoredPool, *, settings: RoutingSettings) -> tuple[NDArray[np.intp], bool]:
    """E4, and whether its second branch was taken."""
    chosen = threshold_candidates(scores.scores_C, min_candidates=settings.min_candidates)
    return chosen[: settings.max_candidates], bool(scores.scores_C.max() <= 0.0)


def _calibrated_candidates(scores: ScoredPool, *, settings: RoutingSettings) -> tuple[NDArray[np.intp], bool]:
    """The posterior's main mass, and whether no adapter explains the text better than a new task."""
    is_unknown = bool((scores.ratios_C < 0.0).all())
    chosen = mass_candidates(scores.posterior_C, mass=settings.candidate_mass, total=1.0)
    if is_unknown:
        if settings.unknown_task_rule is UnknownTaskRule.TOP_K:
            chosen = descending(scores.posterior_C)
        chosen = chosen[: settings.min_candidates]
    return chosen[: settings.max_candidates], is_unknown
