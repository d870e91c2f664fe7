"""The uniform mixture: every adapter, in equal parts, whatever the text. The measure of all choosing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hilora.routing_plan import GateParameters, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import allowed_places, nobody_left, whole_adapters

_MAX_ADAPTERS = 64
"""What one request may ask of a worker, as in the paper's mode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformStrategy:
    """All adapters at weight `1 / n`; where they are too many, the first of them by identity."""

    name: str = "uniform"

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`. The choice does not depend on it, the scores that are reported do."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return replace(RoutingSettings(), max_candidates=_MAX_ADAPTERS)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool = router.pool
        allowed_L = None if pool is None else allowed_places(pool, question)
        if pool is None or allowed_L is None or not len(allowed_L):
            return nobody_left(router, question)
        # By identity, not by place: what came after the fit stands behind it.
        ordered = sorted(allowed_L.tolist(), key=lambda place: pool.profiles[place].adapter_id)
        chosen_C = np.array(ordered[: question.settings.max_candidates], dtype=np.intp)
        return whole_adapters(
            router,
            pool,
            chosen_C,
            question=question,
            weight=1.0 / len(chosen_C),
            gate=GateParameters(),
            reason=f"{len(chosen_C)} of {len(allowed_L)} adapters in equal parts, whatever the text says.",
        )
