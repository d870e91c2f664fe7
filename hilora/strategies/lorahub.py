"""LoraHub (arXiv 2307.13269): factors for adapters that were learned from a few examples, without gradients.

`hilora train lorahub` searches the factors, within [-1.5, 1.5], that make the examples likeliest. What is learned
belongs to a task, not to a text: every text gets the same plan, until others are learned.

The outputs are mixed, `y = W0 x + sum_i w_i B_i A_i x`. The paper mixes factors, `(sum w_i B_i)(sum w_i A_i)`, whose
cross terms belong to no adapter [ours; the search knows which of both it is for]. A negative factor turns an adapter's
output around.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hilora.errors import InvalidInput
from hilora.routing_plan import GateParameters, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import allowed_places, names_with_weights, nobody_left, whole_adapters

_MAX_ADAPTERS = 20
"""What the paper draws for a task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LorahubStrategy:
    """The adapters of largest learned factor, at these factors."""

    name: str = "lorahub"

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
        learned = question.learned_weights
        if not learned:
            raise _without_weights()
        known = [place for place in allowed_L.tolist() if learned.get(pool.profiles[place].adapter_name)]
        by_size = sorted(
            known,
            key=lambda place: (-abs(learned[pool.profiles[place].adapter_name]), pool.profiles[place].adapter_id),
        )
        chosen_C = np.array(by_size[: question.settings.max_candidates], dtype=np.intp)
        if not len(chosen_C):
            return nobody_left(router, question)
        weights = [learned[pool.profiles[place].adapter_name] for place in chosen_C.tolist()]
        return whole_adapters(
            router,
            pool,
            chosen_C,
            question=question,
            weight=weights,
            gate=GateParameters(),
            reason=f"As learned from examples: {names_with_weights(pool, chosen_C, weights)}.",
        )


def _without_weights() -> InvalidInput:
    return InvalidInput(
        "The strategy 'lorahub' needs factors that were learned from examples, and this router has none.",
        code="strategy_needs_weights",
        remedy="Learn them with `hilora train lorahub` and name the file in HILORA_ROUTER_LORAHUB_WEIGHTS.",
        place="strategy",
    )
