"""What a strategy of the sequence level is: a rule that chooses adapters for a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import GramIds
from hilora.routing_plan import RoutingDecision
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.sequence_routing import SequenceRouter


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RoutingQuestion:
    """One text to choose for."""

    z_E: NDArray[np.floating] | None
    """Its embedding, a unit vector of the pool's encoder; None is enough for a strategy that reads no text."""
    settings: RoutingSettings
    """The rules: a strategy's own, with what the client or the operator changed."""
    request_seed: int = 0
    """Decides draws by chance, where a strategy makes any."""
    exclude: frozenset[str] = frozenset()
    """Names of adapters that must not be chosen."""
    num_runners_up: int = 5
    """Adapters to report besides the chosen ones."""
    own_adapter: str | None = None
    """Name of the adapter that was made for the text's task, where somebody knows it: what `oracle` takes."""
    gate_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    """The learned gate of each strategy that needs one, by the strategy's name."""
    learned_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Factors by adapter name that were learned from examples: what `lorahub` takes."""
    grams: GramIds | None = None
    """How the text is written (`gram_ids`); None if that is not known."""
    text: str | None = None
    """The text itself, for a strategy that asks in which order its parts stand; None if that is not known."""

    @property
    def counted_grams(self) -> GramIds | None:
        """The grams, where the rules let them count."""
        return self.grams if self.settings.score_rule is ScoreRule.STACKED else None


class Strategy(Protocol):
    """Chooses adapters for a text. Pure: the same question gets the same plan, in whatever order adapters came."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether it needs an embedding."""
        ...

    @property
    def settings(self) -> RoutingSettings:
        """Its rules where nobody changes any."""
        ...

    def decide(self, router: SequenceRouter, question: RoutingQuestion) -> RoutingDecision:
        """Choose for one text. A pool that leaves nobody to be chosen gives the base alone, and says so.

        Raises:
            InvalidInput: `strategy_needs_gate`, `strategy_needs_own_adapter`, `strategy_needs_weights`: the strategy
                needs something that the question does not bring; the remedy says how to get it.
            UnknownAdapter: `unknown_own_adapter`.
            ValueError: an embedding of another dimension, or with values that are not finite.
        """
        ...
