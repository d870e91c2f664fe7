"""Random load on a started engine, with random faults, for as long as one likes.

What must hold: every request ends in exactly one terminal event, in time; the books agree between any two steps; and
when all is over nothing is held any more: no memory for keys and values, no references, no threads, no requests.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hilora.adapter import RocBasis
from hilora.errors import HiloraError, QueueFull
from hilora.routing_plan import GateScope, RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import Failed, Started, TextDelta
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import ActiveRequest, EngineRequest
from tests.builders.engine import make_plan
from tests.builders.models import linear_shapes, load_tiny, make_adapter
from tests.soak.faults import FaultyClient, FaultyKernels, FaultySource, make_poisonous

_PAGE_BYTES = 4096
"""16 positions of the tiny model in float32."""
_NUM_ADAPTERS = 24
_NUM_POISONOUS = 2
_NUM_CLIENTS = 3
_MAX_REQUESTS_PER_CLIENT = 12
_STUCK_SECONDS = 60.0
_ROUND_SECONDS = 5.0
"""Load for so long, then rest, look and go on."""
_LEAST_ROUNDS = 3
_MOST_ROUNDS_FOR_A_FAULT = 10
_MAX_GROWTH_BYTES = 48 << 20
"""Of the process, from the first third of the rounds to the last: an allocator needs some room to move."""


@dataclass
class SoakReport:
    """What a soak came to; it passed if `problems` is empty."""

    num_submitted: int = 0
    num_refused: int = 0
    num_rounds: int = 0
    num_faults: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    counters: dict[str, Any] = field(default_factory=dict)
    longest_seconds: float = 0.0
    rss_bytes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class EngineSoak:
    """One soak.

    Args:
        seed: of load and faults; threads make each run different all the same.
        seconds: how long, roughly; longer where less than three rounds are done by then.
        kv_layout: of the KV cache; pages run out, slots are only taken by more urgent requests.
    """

    def __init__(self, *, seed: int, seconds: float, kv_layout: Literal["slots", "pages"] = "pages") -> None:
        self._seconds = seconds
        self._rng = random.Random(seed)
        self._threads_before = set(threading.enumerate())
        loaded = load_tiny()
        shapes = linear_shapes(loaded.model)
        adapters = {f"a{idx}": make_adapter(shapes, rank=1 + idx % 4, seed=idx) for idx in range(_NUM_ADAPTERS)}
        for idx in range(_NUM_POISONOUS):
            make_poisonous(adapters[f"a{idx}"])
        self._source = FaultySource(adapters, random.Random(seed + 1))
        config = EngineConfig(
            max_num_seqs=6,
            max_model_len=64,
            max_num_batched_tokens=24,
            max_waiting=20,
            max_queue_seconds=20.0,
            priority_ageing_seconds=0.5,
            kv_layout=kv_layout,
            kv_cache_bytes=14 * _PAGE_BYTES if kv_layout == "pages" else None,
            enable_prefix_cache=True,
            # Room for about a third of the adapters.
            roc_pool_bytes=100_000,
            component_timeout_seconds=1.0,
            max_placing_seconds=0.1,
        )
        self._engine = Engine(loaded=loaded, source=self._source, config=config)
        self._kernels = FaultyKernels(self._engine, random.Random(seed + 2))
        self._kernels.install(steps_per_check=5)
        self._report = SoakReport()
        self._lock = threading.Lock()
        self._num_ids = 0

    def run(self) -> SoakReport:
        """Load and rest in turns, and a stop in the middle of load."""
        self._engine.start()
        ends_at = time.monotonic() + self._seconds
        # On a slow machine few steps are done in a time: rounds count as well, and that something went wrong in them.
        while (
            time.monotonic() < ends_at
            or self._report.num_rounds < _LEAST_ROUNDS
            or (self._kernels.num_faults == 0 and self._report.num_rounds < _MOST_ROUNDS_FOR_A_FAULT)
        ):
            self._round(min(_ROUND_SECONDS, self._seconds / 3))
        clients = self._load(0.3)
        self._engine.stop(drain_seconds=0.05)
        self._check_ends(clients)
        self._check_rest()
        self._check_growth()
        report, totals = self._report, self._engine.stats().counters
        report.num_faults = self._kernels.num_faults
        report.problems += self._kernels.violations
        report.counters = {name: getattr(totals, name) for name in totals.__slots__}
        self._check_leftovers()
        return report

    def _round(self, seconds: float) -> None:
        self._kernels.is_faulty = self._source.is_faulty = True
        clients = self._load(seconds)
        # What still runs ends without further faults, or it would never be at rest.
        self._kernels.is_faulty = self._source.is_faulty = False
        self._check_ends(clients)
        gc.collect()
        self._report.rss_bytes.append(_rss_bytes())
        self._report.num_rounds += 1

    def _load(self, seconds: float) -> list[FaultyClient]:
        """What several threads of clients do for a while."""
        clients: list[FaultyClient] = []
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._submit_until, args=(until, random.Random(self._rng.random()), clients))
            for _ in range(_NUM_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return clients

    def _submit_until(self, until: float, rng: random.Random, clients: list[FaultyClient]) -> None:
        own: list[tuple[str, FaultyClient]] = []
        while time.monotonic() < until:
            own = [(name, client) for name, client in own if not client.done.is_set()]
            chance = rng.random()
            if chance < 0.05 and own:
                self._engine.abort(rng.choice(own)[0])
            elif chance < 0.08:
                self._manage(rng)
            elif len(own) < _MAX_REQUESTS_PER_CLIENT:
                accepted = self._submit(rng)
                own += accepted
                clients += [client for _, client in accepted]
            else:
                time.sleep(0.002)

    def _submit(self, rng: random.Random) -> list[tuple[str, FaultyClient]]:
        with self._lock:
            self._num_ids += 1
            name = f"r{self._num_ids}"
        client = FaultyClient(raises_on=rng.choice([Started, TextDelta, Failed]) if rng.random() < 0.03 else None)
        try:
            self._engine.submit(_random_request(name, rng), client)
        except HiloraError as error:
            with self._lock:
                self._report.num_refused += 1
            if isinstance(error, QueueFull):
                time.sleep(min(error.retry_after_seconds, 0.05))
            return []
        with self._lock:
            self._report.num_submitted += 1
        return [(name, client)]

    def _manage(self, rng: random.Random) -> None:
        adapter_id = f"a{rng.randrange(_NUM_ADAPTERS)}"
        self._engine.retire(adapter_id)
        if rng.random() < 0.9:
            self._engine.readmit(adapter_id)
        if rng.random() < 0.05:
            self._engine.pin("a9", RocBasis.TRAINED)
        self._engine.stats()

    def _check_ends(self, clients: list[FaultyClient]) -> None:
        report = self._report
        deadline = time.monotonic() + _STUCK_SECONDS
        for client in clients:
            if not client.done.wait(max(0.0, deadline - time.monotonic())):
                report.problems.append("a request is stuck")
                continue
            report.longest_seconds = max(report.longest_seconds, time.monotonic() - client.submitted_at)
            end = client.terminals[0]
            report.ends[end.error.code if isinstance(end, Failed) else str(end.finish_reason)] += 1
            if len(client.terminals) != 1:
                report.problems.append(f"{len(client.terminals)} terminal events")
            report.problems += client.violations

    def _check_rest(self) -> None:
        """Of an engine that has stopped."""
        stats = self._engine.stats()
        if (stats.num_running, stats.num_waiting, stats.kv_cache_usage) != (0, 0, 0.0):
            self._report.problems.append("a stopped engine still holds requests")
        try:
            self._engine.check_integrity()
        except AssertionError as error:
            self._report.problems.append(f"after the stop: {error}")
        counters = stats.counters
        ended = counters.num_requests_finished + counters.num_requests_failed + counters.num_requests_aborted
        if ended != self._report.num_submitted:
            self._report.problems.append(f"{ended} ends were counted for {self._report.num_submitted} requests")

    def _check_growth(self) -> None:
        sizes = self._report.rss_bytes
        third = len(sizes) // 3
        if third == 0:
            return
        growth = statistics.median(sizes[-third:]) - statistics.median(sizes[:third])
        if growth > _MAX_GROWTH_BYTES:
            self._report.problems.append(f"the process grew by {growth:.0f} bytes")

    def _check_leftovers(self) -> None:
        deadline = time.monotonic() + 30
        while (extra := set(threading.enumerate()) - self._threads_before) and time.monotonic() < deadline:
            time.sleep(0.1)
        if extra:
            self._report.problems.append(f"threads are left: {sorted(thread.name for thread in extra)}")
        gc.collect()
        num_left = sum(type(one) is ActiveRequest for one in gc.get_objects())
        if num_left:
            self._report.problems.append(f"{num_left} requests are still in memory")


def _random_request(name: str, rng: random.Random) -> EngineRequest:
    prompt = random.Random(rng.randint(0, 9))
    # Some requests are refused: an empty prompt, or one that is too long.
    num_tokens = rng.choice([0, 70, *range(1, 40)])
    sampling = SamplingParams(
        max_tokens=rng.randint(1, 30),
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randint(0, 1000),
        ignore_eos=rng.random() < 0.5,
        frequency_penalty=rng.choice([0.0, 0.5]),
        logprobs=rng.choice([None, None, 2]),
        prompt_logprobs=rng.choice([None, None, None, 1]),
        stop=rng.choice([(), ("a",), ("xyz",)]),
    )
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt.randint(3, 95) for _ in range(num_tokens)),
        sampling=sampling,
        plan=_random_plan(rng),
        priority=rng.choice([0, 0, 0, -1, 1]),
    )


def _random_plan(rng: random.Random) -> RoutingPlan:
    if rng.random() < 0.25:
        return RoutingPlan()
    # Some adapters are asked for more often than others.
    members = {min(int(rng.expovariate(0.15)), _NUM_ADAPTERS - 1) for _ in range(rng.randint(1, 3))}
    budgets = ((f"a{idx}", rank := 1 + idx % 4, rng.randint(0, rank), rng.random()) for idx in sorted(members))
    return make_plan(*budgets, scope=rng.choice(list(GateScope)))


def _rss_bytes() -> int:
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")
