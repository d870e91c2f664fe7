"""LoGo (arXiv 2511.07129): the model itself says which adapters answer, by how strongly they react to the prompt.

The worker reads the prompt once with the base alone. At the last token, the query projection of the last block tells
the length of what each adapter would add there: `s_i = ||B_i A_i x||`. The `top` of largest `s` answer, at weights
`s_i / sum s_j` [paper]. In the paper all adapters of the pool are asked; here the likeliest are [ours], because asking
means to bring an adapter's factors to the worker. A pool of no more than `max_candidates` adapters is the paper's form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hilora.routing_plan import GateParameters, PlanPreparation, PreparationMethod, RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import likeliest, nobody_left, whole_adapters

_MAX_ASKED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LogoStrategy:
    """The adapters that react most strongly, among the likeliest."""

    name: str = "logo"
    num_answering: int = 3
    """How many answer, at most [ours: the k of the retrieval strategies]."""

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`. `max_candidates` are asked."""
        return replace(RoutingSettings(), max_candidates=_MAX_ASKED)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`. The factors of the plan are those before anybody is asked."""
        found = likeliest(router, question)
        if found is None:
            return nobody_left(router, question)
        pool, nearest = found
        num_asked = len(nearest.idx_C)
        return whole_adapters(
            router,
            pool,
            nearest.idx_C,
            question=question,
            weight=1.0 / num_asked,
            gate=GateParameters(),
            preparation=PlanPreparation(method=PreparationMethod.LOGO, num_kept=self.num_answering),
            reason=f"The likeliest {num_asked} of {nearest.num_allowed} adapters are asked; the strongest answer.",
        )
