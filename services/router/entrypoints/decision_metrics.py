"""Figures about what is decided: how sure, how often again, and for whom, with a bounded number of names."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from hilora.routing_plan import CandidateScore, RoutingDecision, RoutingMode

_MAX_REMEMBERED_PLANS = 4096
_MAX_UNNAMED = 4096
_DECISIONS_BEFORE_A_NAME = 10
OTHER = "other"
"""Label of all adapters that have none of their own."""


class DecisionMetrics:
    """Counts decisions.

    An adapter gets a label of its own once it was chosen ten times, as long as there is room, and keeps it; what it
    was chosen for before, and all others, count as `other`. So every series only grows, and their number is bounded.

    Args:
        registry: where the figures are shown.
        num_named: most adapters with a label of their own; 0 shows no adapter at all.
    """

    def __init__(self, registry: CollectorRegistry, *, num_named: int) -> None:
        self._num_named = num_named
        self._named: set[str] = set()
        self._unnamed: Tally[str] = Tally()
        self._plans: OrderedDict[str, None] = OrderedDict()
        self._decisions = Counter("hilora_router_decisions", "Decisions by mode.", ("mode",), registry=registry)
        self._strangers = Counter(
            "hilora_router_out_of_distribution",
            "Automatic decisions for texts that no adapter explains.",
            registry=registry,
        )
        self._top_posterior = Histogram(
            "hilora_router_top_posterior",
            "Posterior of the likeliest adapter of automatic decisions: low buckets are low confidence.",
            registry=registry,
            buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
        )
        self._entropy = Histogram(
            "hilora_router_posterior_entropy_nats",
            "Entropy of the posterior of automatic decisions; adapters that are not reported count as one.",
            registry=registry,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
        )
        self._repeated = Counter(
            "hilora_router_plans_repeated",
            "Decisions whose plan was among the last 4096 different ones: what prefix caches live on.",
            registry=registry,
        )
        self._of_adapter = Counter(
            "hilora_router_adapter_decisions",
            "Automatic decisions that an adapter is part of; `other` for adapters without a label of their own.",
            ("adapter",),
            registry=registry,
        )

    def observe(self, decision: RoutingDecision) -> None:
        """One decision was made."""
        self._decisions.labels(decision.mode.value).inc()
        digest = decision.plan.digest
        if digest in self._plans:
            self._repeated.inc()
        self._plans[digest] = None
        self._plans.move_to_end(digest)
        if len(self._plans) > _MAX_REMEMBERED_PLANS:
            self._plans.popitem(last=False)
        if decision.mode is RoutingMode.EXPLICIT:
            return
        if decision.is_out_of_distribution:
            self._strangers.inc()
        if decision.candidates:
            self._top_posterior.observe(max(candidate.posterior for candidate in decision.candidates))
            self._entropy.observe(posterior_entropy(decision.candidates))
        if self._num_named:
            for budget in decision.plan.budgets:
                self._of_adapter.labels(self._label_of(budget.adapter_name)).inc()

    def _label_of(self, adapter_name: str) -> str:
        # An adapter may itself be called "other": it stays among the others.
        if adapter_name in self._named:
            return adapter_name
        if len(self._named) >= self._num_named or adapter_name == OTHER:
            return OTHER
        if adapter_name in self._unnamed or len(self._unnamed) < _MAX_UNNAMED:
            self._unnamed[adapter_name] += 1
        if self._unnamed[adapter_name] > _DECISIONS_BEFORE_A_NAME:
            del self._unnamed[adapter_name]
            self._named.add(adapter_name)
            return adapter_name
        return OTHER


def posterior_entropy(candidates: Sequence[CandidateScore]) -> float:
    """Entropy in nats of the posterior over some adapters, and of all others together as one more.

    A decision reports its likeliest adapters only; the value is at most that of the whole posterior, and equal to it
    where the others have no weight.
    """
    shares = [candidate.posterior for candidate in candidates]
    shares.append(max(0.0, 1.0 - sum(shares)))
    return -sum(share * math.log(share) for share in shares if share > 0.0)
