"""Plans for texts as the product makes them: its strategies, its rules, its policy for what no adapter explains.

Routers are fitted to a pool once per adapter that is left out: `ood` means that the adapter was never registered, not
that it is passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import gram_ids
from hilora.routing_plan import RoutingDecision
from hilora.sequence_routing import AdapterProfile, SequenceRouter
from hilora.strategies import RoutingQuestion
from services.router.low_confidence import with_policy
from services.router.routing_options import AUTO_MODEL, RoutingOptions
from services.router.routing_rules import RoutingDefaults, rules_for

PRODUCT_DEFAULTS = RoutingDefaults()
"""What a router does whose operator sets nothing."""
DEFAULT_STRATEGY = PRODUCT_DEFAULTS.strategy


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What some strategies learned beforehand."""

    gate_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    """The gate of each strategy that needs one, by the strategy's name."""
    gates_folder: Path | None = None
    """Where their files are."""
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Factors by adapter name: what `lorahub` takes."""
    task_weights: Mapping[str, Mapping[str, float]] | None = None
    """The same by task, where every task has its own; `weights` is not used then."""
    task_weights_without_own: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """Searched anew for the case that the task's own adapter is not there."""

    def weights_of(self, task: str, without: str | None) -> Mapping[str, float]:
        """The factors for a line of a task; none where nothing was learned."""
        if self.task_weights is None:
            return self.weights
        return (self.task_weights_without_own if without == task else self.task_weights).get(task, {})


NOTHING_LEARNED = Learned()


class Planner:
    """Chooses among a pool of adapters.

    Args:
        profiles: the pool by adapter name.
        seed: decides draws by chance, together with each text.
        learned: what strategies learned.
    """

    def __init__(
        self, profiles: Mapping[str, AdapterProfile], *, seed: int = 0, learned: Learned = NOTHING_LEARNED
    ) -> None:
        self.profiles = dict(profiles)
        self._learned = learned
        self._seed = seed
        self._routers: dict[str | None, SequenceRouter] = {}

    def router(self, without: str | None = None) -> SequenceRouter:
        """The pool, fitted, without one adapter."""
        if without not in self._routers:
            left = [profile for name, profile in self.profiles.items() if name != without]
            self._routers[without] = SequenceRouter(left, catalog_generation=0)
        return self._routers[without]

    def decide(
        self,
        text: str,
        z_E: NDArray[np.float32],
        strategy: str,
        *,
        task: str = "",
        without: str | None = None,
        exclude: frozenset[str] = frozenset(),
        changes: Mapping[str, object] | None = None,
    ) -> RoutingDecision:
        """What a router answers for one text.

        Args:
            text: the prompt.
            z_E: its embedding.
            strategy: by name.
            task: whose line the text is, for what was learned by task.
            without: the adapter that was never registered.
            exclude: names that are passed over, though the pool was fitted with them.
            changes: fields of the strategy's `RoutingSettings` to depart in.

        Raises:
            UnknownAdapter: `unknown_strategy`.
        """
        rules = rules_for(RoutingOptions(model=f"{AUTO_MODEL}:{strategy}"), PRODUCT_DEFAULTS)
        settings = replace(rules.settings, **changes) if changes else rules.settings
        router = self.router(without)
        question = RoutingQuestion(
            z_E=z_E,
            settings=settings,
            request_seed=self._seed_of(text),
            exclude=exclude,
            gate_ids=self._learned.gate_ids,
            learned_weights={
                name: factor
                for name, factor in self._learned.weights_of(task, without).items()
                if name not in {without, *exclude}
            },
            grams=gram_ids(text) if router.counts_grams else None,
            text=text,
        )
        decision = rules.strategy.decide(router, question)
        return with_policy(decision, PRODUCT_DEFAULTS.low_confidence)

    def _seed_of(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._seed}/{text}".encode()).digest()[:4])
