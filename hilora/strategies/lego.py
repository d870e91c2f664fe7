"""LoRA-LEGO (arXiv 2409.16167) on line: the components of the likely adapters, clustered into one adapter of rank k.

The paper merges a pool once. Here the adapters of a request are merged [ours]: those that hold the posterior's main
mass, at most three, as in HiLoRA's own calibrated mode. The worker clusters their components, as they were trained
[paper], and keeps the result for the next request with the same adapters and k. A request with one candidate gets that
adapter back.
"""

from __future__ import annotations

from dataclasses import dataclass

from hilora.adapter import RocBasis
from hilora.candidate_selection import mass_candidates
from hilora.routing_plan import GateParameters, PlanPreparation, PreparationMethod, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import checked_text, nobody_left, whole_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class LegoStrategy:
    """The likeliest adapters, merged by clusters of components."""

    name: str = "lego"
    num_rocs: int = 0
    """k; 0 for the largest rank among the adapters."""

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return RoutingSettings()

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool, settings = router.pool, question.settings
        if pool is None:
            return nobody_left(router, question)
        scores = pool.score_nearest(
            checked_text(pool, question),
            num_results=settings.max_candidates,
            excluded=pool.excluded_places(question.exclude),
            grams=question.counted_grams,
        )
        if not scores.num_allowed:
            return nobody_left(router, question)
        chosen_C = mass_candidates(scores.posterior_C, mass=settings.candidate_mass, total=1.0)
        places_C = scores.idx_C[chosen_C][: settings.max_candidates]
        names = ", ".join(pool.profiles[place].adapter_name for place in places_C)
        is_merge = len(places_C) > 1 or self.num_rocs > 0
        what = (
            "The components of the likeliest adapters are clustered into one" if is_merge else "One adapter is likely"
        )
        return whole_adapters(
            router,
            pool,
            places_C,
            question=question,
            weight=1.0,
            gate=GateParameters(basis=RocBasis.TRAINED) if is_merge else GateParameters(),
            preparation=PlanPreparation(method=PreparationMethod.LEGO, num_kept=self.num_rocs) if is_merge else None,
            reason=f"{what}: {names}.",
        )
