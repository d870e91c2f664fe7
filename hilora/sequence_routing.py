"""Sequence-level routing: from the embedding of a request's text to the adapters that answer it, once per request.

    score every adapter  ->  choose candidates  ->  grant ROC budgets  ->  a frozen plan with its reasons

`RoutingMode.CALIBRATED` and `RoutingMode.PAPER` share this road and differ in `RoutingSettings`.

Shapes: L adapters of the pool in the order of their `adapter_id`, C candidates, M samples, E embedding dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from hilora.covariance import FloatArray
from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.gaussian import CovarianceFamily, fit_gaussian
from hilora.pooled_gaussian import fit_pooled
from hilora.routing_explanation import ScoredPool, base_decision, explained_decision, explicit_decision
from hilora.routing_plan import GateParameters, RocBudget, RoutingDecision, RoutingMode, RoutingPlan
from hilora.routing_settings import BudgetRule, RoutingSettings, UnknownTaskRule

__all__ = ["AdapterProfile", "RoutingSettings", "SequenceRouter", "base_decision", "explicit_decision"]

_Scorer = Callable[[NDArray[np.floating]], FloatArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterProfile:
    """What the router knows of an adapter: the embeddings of its sample texts."""

    adapter_id: str
    adapter_name: str
    lora_rank: int
    samples_ME: NDArray[np.float32]
    """Unit vectors of the pool's encoder, at least one."""


class SequenceRouter:
    """A pool, fitted. Immutable to its callers and safe to share between threads.

    The calibrated model is fitted by the constructor; the paper's Gaussians at the first request that asks for them.

    Args:
        profiles: the pool in any order; the order never matters.
        catalog_generation: what every plan is stamped with.

    Raises:
        ValueError: an adapter twice, one without samples or ranks, unequal dimensions, values that are not finite.
    """

    def __init__(self, profiles: Sequence[AdapterProfile], *, catalog_generation: int) -> None:
        self._profiles = tuple(sorted(profiles, key=lambda profile: profile.adapter_id))
        if len({profile.adapter_id for profile in self._profiles}) != len(self._profiles):
            raise ValueError("an adapter_id stands in the pool twice")
        if any(profile.lora_rank < 1 for profile in self._profiles):
            raise ValueError("every adapter needs a rank of at least 1")
        self._identities = tuple((profile.adapter_id, profile.adapter_name) for profile in self._profiles)
        self._catalog_generation = catalog_generation
        self._calibrated: PooledEmpiricalBayes | None = None
        if self._profiles:
            self._calibrated = fit_pooled_eb([profile.samples_ME for profile in self._profiles])
        self._scorers: dict[tuple[CovarianceFamily, float], _Scorer] = {}
        self._lock = threading.Lock()

    @property
    def num_adapters(self) -> int:
        """Size of the pool."""
        return len(self._profiles)

    @property
    def catalog_generation(self) -> int:
        """The catalogue this router was fitted to."""
        return self._catalog_generation

    @property
    def temperature(self) -> float | None:
        """The fitted temperature of the posterior; None for an empty pool."""
        return None if self._calibrated is None else self._calibrated.temperature

    def decide(
        self,
        z_E: NDArray[np.floating],
        *,
        settings: RoutingSettings,
        request_seed: int = 0,
        exclude: frozenset[str] = frozenset(),
        num_runners_up: int = 5,
    ) -> RoutingDecision:
        """Choose adapters and budgets for one text.

        Args:
            z_E: the text's embedding, a unit vector of the pool's encoder.
            settings: the rules.
            request_seed: decides the draws of `BudgetRule.MULTINOMIAL`; without effect otherwise.
            exclude: names of adapters that must not be chosen; the posterior is that of the others.
            num_runners_up: adapters to report besides the chosen ones.

        Returns:
            The plan with its reasons. An empty pool gives the base alone, and says so.

        Raises:
            ValueError: an embedding of another dimension, or with values that are not finite.
        """
        allowed = np.array([p.adapter_name not in exclude for p in self._profiles], dtype=np.bool_)
        if self._calibrated is None or not allowed.any():
            reason = "Every adapter is excluded" if self._profiles else "No adapter is registered"
            return base_decision(
                catalog_generation=self._catalog_generation,
                mode=settings.mode,
                reason=f"{reason}: the base model answers alone.",
                is_out_of_distribution=True,
            )
        scores = self._score(self._checked(z_E, self._calibrated), settings=settings, allowed=np.flatnonzero(allowed))
        choose = _paper_candidates if settings.mode is RoutingMode.PAPER else _calibrated_candidates
        chosen, is_unknown = choose(scores, settings=settings)
        plan = self._grant(chosen, scores, settings=settings, request_seed=request_seed)
        return explained_decision(
            plan,
            scores=scores,
            identities=self._identities,
            mode=settings.mode,
            is_unknown=is_unknown,
            num_runners_up=num_runners_up,
        )

    def _checked(self, z_E: NDArray[np.floating], model: PooledEmpiricalBayes) -> FloatArray:
        z_E = np.asarray(z_E, dtype=np.float64)
        if z_E.shape != model.space.center_E.shape:
            raise ValueError(f"the embedding has shape {z_E.shape}, the pool's are {model.space.center_E.shape}")
        if not np.isfinite(z_E).all():
            raise ValueError("the embedding holds values that are not finite")
        return z_E

    def _score(self, z_E: FloatArray, *, settings: RoutingSettings, allowed: NDArray[np.intp]) -> ScoredPool:
        assert self._calibrated is not None, "decide answers for an empty pool itself"
        log_likelihood_L = self._calibrated.log_likelihood(z_E)
        posterior_L = np.zeros(len(self._profiles))
        posterior_L[allowed] = softmax(log_likelihood_L[allowed] / self._calibrated.temperature)
        scores_L = log_likelihood_L
        if settings.mode is RoutingMode.PAPER:
            scores_L = self._scorer(settings)(z_E) / len(z_E)
        return ScoredPool(
            scores_L=scores_L,
            ratios_L=self._calibrated.log_likelihood_ratio(z_E),
            posterior_L=posterior_L,
            allowed=allowed,
        )

    def _scorer(self, settings: RoutingSettings) -> _Scorer:
        """The log-likelihoods of a covariance family, fitted at its first use."""
        key = (settings.covariance_family, settings.covariance_shrinkage)
        with self._lock:
            if key not in self._scorers:
                samples = [profile.samples_ME for profile in self._profiles]
                self._scorers[key] = _fit_scorer(samples, family=key[0], shrinkage=key[1])
            return self._scorers[key]

    def _grant(
        self, chosen: NDArray[np.intp], scores: ScoredPool, *, settings: RoutingSettings, request_seed: int
    ) -> RoutingPlan:
        ranks = [self._profiles[idx].lora_rank for idx in chosen]
        budget = total_budget(ranks, gamma=settings.gamma, confidence_following=settings.confidence_following)
        if settings.budget_rule is BudgetRule.MULTINOMIAL:
            shares_C = softmax(scores.scores_L[chosen])
            counts = multinomial_counts(
                ranks, shares_C=shares_C, budget=budget, rng=np.random.default_rng(request_seed)
            )
        else:
            budget = max(budget, len(ranks))
            counts = largest_remainder_counts(ranks, shares_C=scores.posterior_L[chosen], budget=budget)
        weights = candidate_weights(scores.posterior_L[chosen], rule=settings.weight_rule)
        return RoutingPlan(
            budgets=tuple(
                RocBudget(
                    adapter_id=self._profiles[idx].adapter_id,
                    adapter_name=self._profiles[idx].adapter_name,
                    lora_rank=rank,
                    num_rocs=count,
                    weight=weight,
                )
                for idx, rank, count, weight in zip(chosen, ranks, counts, weights, strict=True)
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


def _paper_candidates(scores: ScoredPool, *, settings: RoutingSettings) -> tuple[NDArray[np.intp], bool]:
    """E4, and whether its second branch was taken."""
    allowed_scores = scores.scores_L[scores.allowed]
    chosen = threshold_candidates(allowed_scores, min_candidates=settings.min_candidates)
    return scores.allowed[chosen[: settings.max_candidates]], bool(allowed_scores.max() <= 0.0)


def _calibrated_candidates(scores: ScoredPool, *, settings: RoutingSettings) -> tuple[NDArray[np.intp], bool]:
    """The posterior's main mass, and whether no adapter explains the text better than a new task."""
    posterior = scores.posterior_L[scores.allowed]
    is_unknown = bool((scores.ratios_L[scores.allowed] < 0.0).all())
    chosen = mass_candidates(posterior, mass=settings.candidate_mass)
    if is_unknown:
        if settings.unknown_task_rule is UnknownTaskRule.TOP_K:
            chosen = descending(posterior)
        chosen = chosen[: settings.min_candidates]
    return scores.allowed[chosen[: settings.max_candidates]], is_unknown


def _fit_scorer(samples: Sequence[NDArray[np.floating]], *, family: CovarianceFamily, shrinkage: float) -> _Scorer:
    if family is CovarianceFamily.POOLED:
        return fit_pooled(samples).log_likelihood
    if family is CovarianceFamily.POOLED_EB:
        return fit_pooled_eb(samples).log_likelihood
    gaussians = [fit_gaussian(block, family=family, shrinkage=shrinkage) for block in samples]
    return lambda z_E: np.array([gaussian.log_likelihood(z_E) for gaussian in gaussians])
