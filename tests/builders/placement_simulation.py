"""A pool of workers under skewed traffic, in simulated time: how often adapters are found, how full it gets.

Run as a module it prints the table of docs/experiments.md: `python -m tests.builders.placement_simulation`.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Literal

from hilora.routing_plan import RocBudget, RoutingPlan
from services.router.placement import PlacementWeights, WorkerView, choose_worker

_MAX_NUM_SEQS = 16
_NUM_ADAPTERS = 200
_POOL_ADAPTERS = 40
_ZIPF = 1.0
_MEAN_SERVICE_SECONDS = 1.0
_LOAD_SECONDS = 0.5
_POLL_SECONDS = 1.0

Policy = Literal["least-loaded", "placement"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    hit_rate: float
    p99_load: float
    """Requests per place at the chosen worker, its own included."""
    busiest_workers_of_hottest: int
    """Workers that served at least a tenth of the most wanted adapter's requests."""


@dataclass
class _Worker:
    residents: OrderedDict[str, None] = field(default_factory=OrderedDict)
    num_running: int = 0
    reported: int = 0
    reported_residents: frozenset[str] = frozenset()
    sent_adapters: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What each router sent since the last poll: it knows of its own alone."""
    polled_at: float = 0.0
    in_flight_of: Counter = field(default_factory=Counter)


def simulate(
    policy: Policy,
    *,
    seed: int,
    num_workers: int = 8,
    num_routers: int = 2,
    utilisation: float = 0.7,
    num_requests: int = 6_000,
    weights: PlacementWeights | None = None,
) -> Outcome:
    """Poisson arrivals, Zipf adapters, exponential service; a miss adds the loading. Routers know each worker as of its
    last poll, and their own requests."""
    weights = weights or PlacementWeights()
    rng = random.Random(seed)
    names = [f"a{number}" for number in range(_NUM_ADAPTERS)]
    popularity = [1 / (number + 1) ** _ZIPF for number in range(_NUM_ADAPTERS)]
    plans = {
        name: RoutingPlan(budgets=(RocBudget(adapter_id=name, adapter_name=name, lora_rank=8, num_rocs=4),))
        for name in names
    }
    workers = [_Worker(polled_at=-rng.random() * _POLL_SECONDS) for _ in range(num_workers)]
    rate = utilisation * num_workers * _MAX_NUM_SEQS / _MEAN_SERVICE_SECONDS
    endings: list[tuple[float, int, int, int]] = []
    now, hits, loads = 0.0, 0, []
    served_hottest: Counter[int] = Counter()
    for number in range(num_requests):
        now += rng.expovariate(rate)
        while endings and endings[0][0] <= now:
            _, _, idx, router = heapq.heappop(endings)
            workers[idx].num_running -= 1
            workers[idx].in_flight_of[router] -= 1
        for worker in workers:
            if now - worker.polled_at >= _POLL_SECONDS:
                worker.polled_at = now
                worker.reported = worker.num_running
                worker.reported_residents = frozenset(worker.residents)
                worker.sent_adapters.clear()
        adapter = rng.choices(names, popularity)[0]
        router = number % num_routers
        views = [
            WorkerView(
                address=str(idx),
                num_reported=worker.reported,
                num_in_flight=worker.in_flight_of[router],
                max_num_seqs=_MAX_NUM_SEQS,
                resident_adapter_ids=worker.reported_residents | worker.sent_adapters[router],
                age_seconds=now - worker.polled_at,
            )
            for idx, worker in enumerate(workers)
        ]
        if policy == "placement":
            idx = int(choose_worker(views, plans[adapter], weights=weights, rng=rng).address)
        else:
            # What the pool did before: the fuller of report and own count, chance between equals.
            idx = min(
                range(num_workers), key=lambda i: (max(views[i].num_reported, views[i].num_in_flight), rng.random())
            )
        worker = workers[idx]
        is_hit = adapter in worker.residents
        worker.residents[adapter] = None
        worker.residents.move_to_end(adapter)
        worker.sent_adapters[router].add(adapter)
        if len(worker.residents) > _POOL_ADAPTERS:
            worker.residents.popitem(last=False)
        hits += is_hit
        served_hottest[idx] += adapter == names[0]
        worker.num_running += 1
        worker.in_flight_of[router] += 1
        loads.append(worker.num_running / _MAX_NUM_SEQS)
        lasts = rng.expovariate(1 / _MEAN_SERVICE_SECONDS) + (0.0 if is_hit else _LOAD_SECONDS)
        heapq.heappush(endings, (now + lasts, number, idx, router))
    loads.sort()
    total = served_hottest.total()
    return Outcome(
        hit_rate=hits / num_requests,
        p99_load=loads[int(0.99 * len(loads))],
        busiest_workers_of_hottest=sum(count >= total / 10 for count in served_hottest.values()),
    )


def main() -> None:
    """Print a table: policies under three loads, means of three seeds."""
    print("| policy | utilisation | residency hits | p99 load |\n|---|---|---|---|")  # noqa: T201
    for utilisation in (0.5, 0.7, 0.9):
        for policy in ("least-loaded", "placement"):
            found = [simulate(policy, seed=seed, utilisation=utilisation) for seed in range(3)]
            hit_rate = sum(outcome.hit_rate for outcome in found) / 3
            p99_load = sum(outcome.p99_load for outcome in found) / 3
            print(f"| {policy} | {utilisation} | {hit_rate:.3f} | {p99_load:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
