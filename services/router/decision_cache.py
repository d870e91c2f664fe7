"""Decisions on texts that came lately: strategies are pure, so an equal text in an equal pool has an equal plan."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from hilora.routing_plan import RoutingDecision
from hilora.sequence_routing import SequenceRouter


class DecisionCache:
    """A bounded table of decisions of one fitted pool; the least recently used goes first, all of them with the pool.

    Not thread-safe: it lives on the event loop.

    Args:
        max_entries: most decisions, of a few kilobytes each; 0 keeps none.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._router: SequenceRouter | None = None
        self._decisions: OrderedDict[Hashable, RoutingDecision] = OrderedDict()
        self.num_hits = 0
        """Decisions that were found here."""

    def __len__(self) -> int:
        return len(self._decisions)

    def get(self, router: SequenceRouter, key: Hashable) -> RoutingDecision | None:
        """What a pool's strategy decided, which thereby counts as used.

        Args:
            router: the pool; another one than before has decided nothing yet.
            key: all that the decision depends on besides.
        """
        if router is not self._router:
            self._router = router
            self._decisions.clear()
        decision = self._decisions.get(key)
        if decision is not None:
            self._decisions.move_to_end(key)
            self.num_hits += 1
        return decision

    def put(self, router: SequenceRouter, key: Hashable, decision: RoutingDecision) -> None:
        """Keep a decision, unless its pool has been replaced since."""
        if router is not self._router:
            return
        self._decisions[key] = decision
        self._decisions.move_to_end(key)
        while len(self._decisions) > self._max_entries:
            self._decisions.popitem(last=False)
