"""LoraRetriever (arXiv 2402.09997): the adapters whose mean sample lies nearest by cosine.

`retriever-selection` takes the nearest, `retriever-mixture` the mean of the outputs of the k nearest (k = 3 [paper]).
`retriever-fusion` averages the factors, `((1/k) sum B_i) ((1/k) sum A_i) x`: the cross terms of different adapters
belong to no adapter's components, so that no gate computes it. The worker merges them once and keeps the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hilora.adapter import RocBasis
from hilora.candidate_selection import descending
from hilora.routing_plan import GateParameters, PlanPreparation, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import allowed_places, checked_text, nobody_left, whole_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverStrategy:
    """The nearest adapters by cosine, in equal parts."""

    name: str
    num_nearest: int
    """k where nobody says otherwise."""
    most: int | None = None
    """The largest k; None for any."""
    preparation: PlanPreparation | None = None
    """What the worker makes of them; None for the mean of their outputs."""

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return replace(RoutingSettings(), max_candidates=self.num_nearest)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool = router.pool
        allowed_L = None if pool is None else allowed_places(pool, question)
        if pool is None or allowed_L is None or not len(allowed_L):
            return nobody_left(router, question)
        cosines_L = pool.cosines(checked_text(pool, question))[allowed_L]
        nearest_C = descending(np.asarray(cosines_L))[: question.settings.max_candidates][: self.most]
        named = ", ".join(
            f"{pool.profiles[allowed_L[place]].adapter_name} ({cosines_L[place]:.2f})" for place in nearest_C
        )
        return whole_adapters(
            router,
            pool,
            allowed_L[nearest_C],
            question=question,
            weight=1.0 / len(nearest_C),
            gate=GateParameters() if self.preparation is None else GateParameters(basis=RocBasis.TRAINED),
            preparation=self.preparation,
            reason=f"The nearest of {len(allowed_L)} adapters by cosine: {named}.",
        )
