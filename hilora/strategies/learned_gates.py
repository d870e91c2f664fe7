"""Strategies whose tokens choose by a gate that was trained: RAMoLE and PHATGOOSE (`adaptive_gating`).

    ramole      (2406.16989)  the k nearest adapters by cosine [paper: LoraRetriever's retriever, k = 3], all of which a
                              token mixes by attention of a router LoRA to their outputs
    phatgoose   (2402.05859)  a vector per adapter and layer; a token keeps the best two [paper] of the adapters that
                              compete: the likeliest [ours], where in the paper the whole pool does

The gate is an artifact of its own: trained once for a base, and under PHATGOOSE for adapter versions. A router only
knows its id.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hilora.candidate_selection import descending
from hilora.covariance import FloatArray
from hilora.errors import InvalidInput
from hilora.fitted_pool import FittedPool
from hilora.routing_plan import GateParameters, GateRule, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import allowed_places, checked_text, nobody_left, whole_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedGateStrategy:
    """Adapters as wholes, weighed token by token by a trained gate."""

    name: str
    rule: GateRule
    num_competing: int
    """Adapters among which tokens choose, where nobody says otherwise."""
    top_k: int = 0
    """How many adapters a token keeps; 0 keeps all."""
    by_cosine: bool = False
    """Whether the nearest compete, instead of the likeliest."""

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return replace(RoutingSettings(), max_candidates=self.num_competing)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool = router.pool
        allowed_L = None if pool is None else allowed_places(pool, question)
        if pool is None or allowed_L is None or not len(allowed_L):
            return nobody_left(router, question)
        z_E = checked_text(pool, question)
        gate_id = question.gate_ids.get(self.name)
        if gate_id is None:
            raise self._without_gate()
        places_C = self._competing(pool, z_E, allowed_L, question)
        names = ", ".join(pool.profiles[place].adapter_name for place in places_C)
        return whole_adapters(
            router,
            pool,
            places_C,
            question=question,
            weight=1.0,
            gate=GateParameters(rule=self.rule, top_k=self.top_k, gate_id=gate_id),
            reason=f"Every token chooses by the gate {gate_id} among {len(places_C)} of {len(allowed_L)}: {names}.",
        )

    def _competing(
        self, pool: FittedPool, z_E: FloatArray, allowed_L: NDArray[np.intp], question: RoutingQuestion
    ) -> NDArray[np.intp]:
        limit = question.settings.max_candidates
        if self.by_cosine:
            return allowed_L[descending(np.asarray(pool.cosines(z_E)[allowed_L]))[:limit]]
        excluded = pool.excluded_places(question.exclude)
        found = pool.score_nearest(z_E, num_results=limit, excluded=excluded, grams=question.counted_grams)
        return found.idx_C

    def _without_gate(self) -> InvalidInput:
        return InvalidInput(
            f"The strategy {self.name!r} needs a trained gate, and this router has none for it.",
            code="strategy_needs_gate",
            remedy=(
                f"Train one with `hilora train gate --method {self.name}`, copy its file to the workers' "
                f"HILORA_WORKER_GATES_DIR, and name it in HILORA_ROUTER_GATES as {self.name}=GATE_ID."
            ),
            place="strategy",
        )
