"""LORAUTER (arXiv 2601.21795): the adapters of the nearest tasks, weighted by how near these are.

A task is the mean of its samples. The k nearest by cosine are kept (k = 3 [paper]) and their outputs summed with the
softmax of the cosines at temperature 0.2 [paper]. One adapter per task: the paper's choice of a task's best adapter by
validation has nothing to choose here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hilora.calibration import softmax
from hilora.candidate_selection import descending
from hilora.routing_plan import GateParameters, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import (
    allowed_places,
    checked_text,
    names_with_weights,
    nobody_left,
    whole_adapters,
)

_TEMPERATURE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class LorauterStrategy:
    """The nearest task means, softmax-weighted."""

    name: str = "lorauter"
    num_nearest: int = 3
    """k where nobody says otherwise."""

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
        cosines_L = np.asarray(pool.cosines(checked_text(pool, question))[allowed_L])
        nearest_C = descending(cosines_L)[: question.settings.max_candidates]
        weights = softmax(cosines_L[nearest_C] / _TEMPERATURE).tolist()
        chosen_C = allowed_L[nearest_C]
        return whole_adapters(
            router,
            pool,
            chosen_C,
            question=question,
            weight=weights,
            gate=GateParameters(),
            reason=f"The nearest tasks of {len(allowed_L)}: {names_with_weights(pool, chosen_C, weights)}.",
        )
