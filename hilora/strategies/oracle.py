"""The oracle: the adapter that was made for the text's task. What every way of choosing is measured against.

It chooses nothing itself: somebody who knows the task says so (`hilora.own_adapter`; a benchmark does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hilora.errors import InvalidInput, UnknownAdapter
from hilora.routing_plan import GateParameters, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import allowed_places, nobody_left, whole_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleStrategy:
    """The task's own adapter with all its components."""

    name: str = "oracle"

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`. The choice does not depend on it, the scores that are reported do."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return replace(RoutingSettings(), max_candidates=1)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        pool = router.pool
        allowed_L = None if pool is None else allowed_places(pool, question)
        if pool is None or allowed_L is None or not len(allowed_L):
            return nobody_left(router, question)
        name = question.own_adapter
        if name is None:
            raise InvalidInput(
                "The strategy 'oracle' does not know the text's task.",
                code="strategy_needs_own_adapter",
                remedy="Name the task's adapter in hilora.own_adapter, or use another strategy.",
                place="own_adapter",
            )
        own_C = np.array([place for place in allowed_L if pool.profiles[place].adapter_name == name], dtype=np.intp)
        if not len(own_C):
            # One answer for a name that is unknown and one that may not be chosen: who asks must not learn which.
            raise UnknownAdapter(
                f"The adapter {name[:160]!r} is not among those that may be chosen.",
                code="unknown_own_adapter",
                remedy="Name an adapter that GET /v1/models lists and that is not excluded.",
                place="own_adapter",
            )
        return whole_adapters(
            router,
            pool,
            own_C,
            question=question,
            weight=1.0,
            gate=GateParameters(),
            reason=f"The request says that {name} was made for its task.",
        )
