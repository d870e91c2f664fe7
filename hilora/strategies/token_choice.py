"""Strategies that let every token choose among the adapters: Arrow, SpectR and SEQR (`adaptive_gating`).

In their papers all adapters of the pool compete at every token. Reading every component of a large pool for every token
is what a worker cannot do, so the likeliest adapters compete [ours]; with a pool of no more than `max_candidates` that
is the paper's form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hilora.routing_plan import GateParameters, GateRule, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import likeliest, nobody_left, whole_adapters

_MAX_COMPETING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoiceStrategy:
    """The likeliest adapters with all their components; tokens weigh them by a rule of their own."""

    name: str
    rule: GateRule
    top_k: int = 0
    """How many adapters a token keeps; 0 keeps all."""

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return replace(RoutingSettings(), max_candidates=_MAX_COMPETING)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        found = likeliest(router, question)
        if found is None:
            return nobody_left(router, question)
        pool, nearest = found
        names = ", ".join(pool.profiles[place].adapter_name for place in nearest.idx_C)
        return whole_adapters(
            router,
            pool,
            nearest.idx_C,
            question=question,
            weight=1.0,
            gate=GateParameters(rule=self.rule, top_k=self.top_k),
            reason=f"Every token chooses among the likeliest {len(nearest.idx_C)} of {nearest.num_allowed}: {names}.",
        )
