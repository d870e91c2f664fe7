"""The base model without adapters, as a strategy: what every other one is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from hilora.routing_explanation import base_decision
from hilora.routing_plan import RoutingDecision
from hilora.routing_settings import RoutingSettings
from hilora.sequence_routing import SequenceRouter
from hilora.strategies.strategy import RoutingQuestion


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseStrategy:
    """No adapter for any text."""

    name: str = "base"

    @property
    def reads_text(self) -> bool:
        """See `Strategy.reads_text`."""
        return False

    @property
    def settings(self) -> RoutingSettings:
        """See `Strategy.settings`."""
        return RoutingSettings()

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """See `Strategy.decide`."""
        del question
        return base_decision(
            catalog_generation=router.catalog_generation, reason="The strategy 'base' uses the base model alone."
        )
