"""Which worker a request goes to: a pure function of what is known of each.

A worker that holds the plan's components, or the beginning of the prompt, saves work. But what holds a favourite back
must be its own load: the bonus fades as the worker gets busier than the idlest one, and is gone at `spread`. So an
adapter with much traffic gets a second worker exactly when the first one is `spread` fuller than another.

What a worker said some time ago is worth less: others sent it requests since. Of several routers that all know the same
old figures each would pick the same "idlest" one; from stale figures the better of two drawn by chance is taken instead
(M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001; for stale figures
"How Useful Is Old Information?", IEEE TPDS 11(1), 2000).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hilora.routing_plan import RoutingPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementWeights:
    """What counts how much, in units of a full batch. The values are argued in ADR 0025."""

    residency: float = 0.5
    """Bonus of a worker that holds all of the plan's components."""
    prefix: float = 0.3
    """Bonus of a worker that read the whole prompt before."""
    spread: float = 0.75
    """Load above the idlest worker's at which a bonus is gone."""
    kv_pressure: float = 0.5
    """Cost of a KV cache that is full."""
    kv_free_from: float = 0.8
    """Usage of the KV cache up to which it costs nothing."""
    load_memory_seconds: float = 3.0
    """Time after which a reported load of others counts for 1/e."""
    fresh_seconds: float = 0.25
    """Up to this age figures are believed to the point of taking the best of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerView:
    """One worker that may be chosen."""

    address: str
    num_reported: int
    """Requests that it said it had."""
    num_in_flight: int
    """Requests that this router has there now."""
    max_num_seqs: int
    kv_cache_usage: float = 0.0
    """Share in use, 0 to 1."""
    resident_adapter_ids: frozenset[str] = frozenset()
    """Held when it was last asked, or sent there since."""
    prefix_share: float = 0.0
    """Share of the prompt that it read before, under the same plan, 0 to 1."""
    age_seconds: float = 0.0
    """Since it was last asked."""


def load_of(worker: WorkerView, weights: PlacementWeights) -> float:
    """Requests per place in the batch: this router's own for certain, others' as far as the figure is fresh."""
    of_others = max(0, worker.num_reported - worker.num_in_flight)
    trust = math.exp(-max(0.0, worker.age_seconds) / weights.load_memory_seconds)
    return (worker.num_in_flight + of_others * trust) / max(1, worker.max_num_seqs)


def resident_share(plan: RoutingPlan, resident_adapter_ids: frozenset[str]) -> float:
    """Share of a plan's budget whose adapters a worker holds; 0 for a plan without any."""
    wanted = sum(budget.num_rocs for budget in plan.budgets)
    if wanted == 0:
        return 0.0
    return sum(b.num_rocs for b in plan.budgets if b.adapter_id in resident_adapter_ids) / wanted


def cost_of(worker: WorkerView, plan: RoutingPlan, *, idlest: float, weights: PlacementWeights) -> float:
    """What placing a request there costs; lower is better.

    Args:
        worker: where.
        plan: of the request.
        idlest: lowest load among the workers to choose from.
        weights: what counts how much.
    """
    load = load_of(worker, weights)
    over = max(0.0, worker.kv_cache_usage - weights.kv_free_from) / max(1e-9, 1.0 - weights.kv_free_from)
    bonus = weights.residency * resident_share(plan, worker.resident_adapter_ids) + weights.prefix * worker.prefix_share
    fading = max(0.0, 1.0 - (load - idlest) / weights.spread)
    return load + weights.kv_pressure * over - bonus * fading


def choose_worker(
    workers: Sequence[WorkerView], plan: RoutingPlan, *, weights: PlacementWeights, rng: random.Random
) -> WorkerView:
    """The worker of least cost: of all, if every figure is fresh; else of two by chance and of those with a bonus.

    Args:
        workers: at least one; all of them may take the plan.
        plan: of the request.
        weights: what counts how much.
        rng: decides between equals, and who is looked at.
    """
    idlest = min(load_of(worker, weights) for worker in workers)
    looked_at = workers
    if len(workers) > 2 and max(worker.age_seconds for worker in workers) > weights.fresh_seconds:
        drawn = rng.sample(range(len(workers)), 2)
        looked_at = [
            worker
            for idx, worker in enumerate(workers)
            if idx in drawn or worker.prefix_share > 0 or resident_share(plan, worker.resident_adapter_ids) > 0
        ]
    return min(looked_at, key=lambda worker: (cost_of(worker, plan, idlest=idlest, weights=weights), rng.random()))
