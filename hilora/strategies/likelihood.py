"""HiLoRA (arXiv 2510.12266) under both of its modes: `hilora` and `hilora-paper`."""

from __future__ import annotations

from dataclasses import dataclass

from hilora.routing_plan import RoutingDecision, RoutingMode
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion
from hilora.strategies.whole_adapters import nobody_left


@dataclass(frozen=True, kw_only=True, slots=True)
class LikelihoodStrategy:
    """Candidates by Gaussian likelihoods, each with a budget of components."""

    name: str
    mode: RoutingMode

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return True

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return RoutingSettings.for_mode(self.mode)

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        if question.z_E is None:
            if router.pool is None:
                return nobody_left(router, question)
            raise ValueError("this strategy reads the text, and the question has no embedding")
        return router.decide(
            question.z_E,
            settings=question.settings,
            request_seed=question.request_seed,
            exclude=question.exclude,
            num_runners_up=question.num_runners_up,
            grams=question.grams,
            text=question.text,
        )
