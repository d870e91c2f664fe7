"""Task-aware composition by a vector database (arXiv 2602.21222): the tasks that the nearest samples belong to.

    the n samples of largest cosine c          n = 20 [ours: the texts that one adapter brings]
    p = softmax(c / T) over these samples      T = 0.05 [ours]
    mass of a task = sum of p over its samples among them                    [paper]
    nucleus: the fewest tasks that hold 0.9 of the mass, renormalised        [paper; 0.9 ours]
    y = W0 x + sum_i mass_i B_i A_i x    the paper's "concatenation", of its four merges the one without cross terms

Unlike the strategies of means it sees a task that is worded in several ways, and it is fooled by a single stray sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import softmax
from hilora.candidate_selection import mass_candidates
from hilora.covariance import FloatArray
from hilora.fitted_pool import FittedPool
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

_NUM_SAMPLES = 20
_TEMPERATURE = 0.05
_NUCLEUS = 0.9
_MAX_ADAPTERS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskVdbStrategy:
    """The tasks of the nearest samples, cut to a nucleus."""

    name: str = "task-vdb"

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`. `candidate_mass` is the nucleus."""
        return replace(RoutingSettings(), max_candidates=_MAX_ADAPTERS, candidate_mass=_NUCLEUS)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool = router.pool
        allowed_L = None if pool is None else allowed_places(pool, question)
        if pool is None or allowed_L is None or not len(allowed_L):
            return nobody_left(router, question)
        mass_L = _task_masses(pool, checked_text(pool, question), allowed_L)
        chosen_C = mass_candidates(mass_L, mass=question.settings.candidate_mass)[: question.settings.max_candidates]
        weights = (mass_L[chosen_C] / mass_L[chosen_C].sum()).tolist()
        return whole_adapters(
            router,
            pool,
            chosen_C,
            question=question,
            weight=weights,
            gate=GateParameters(),
            reason=f"The tasks of the nearest {_NUM_SAMPLES} samples: {names_with_weights(pool, chosen_C, weights)}.",
        )


def _task_masses(pool: FittedPool, z_E: FloatArray, allowed_L: NDArray[np.intp]) -> FloatArray:
    """Share of the nearest samples' similarity that belongs to each adapter, `[L]`, summing to 1."""
    samples = pool.samples
    cosines_N = (samples.vectors_NE @ z_E.astype(np.float32)).astype(np.float64) / float(np.linalg.norm(z_E) or 1.0)
    is_allowed_L = np.zeros(len(pool.profiles), dtype=bool)
    is_allowed_L[allowed_L] = True
    cosines_N[~is_allowed_L[samples.owner_N]] = -np.inf
    num_samples = min(_NUM_SAMPLES, int(is_allowed_L[samples.owner_N].sum()))
    # Equal cosines in the order of the adapters' identities: what came after the fit stands behind it otherwise.
    nearest_N = np.lexsort((samples.rank_of_owner_N, -cosines_N))[:num_samples]
    mass_L = np.zeros(len(pool.profiles))
    np.add.at(mass_L, samples.owner_N[nearest_N], softmax(cosines_N[nearest_N] / _TEMPERATURE))
    return mass_L
