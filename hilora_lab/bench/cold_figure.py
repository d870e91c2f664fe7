"""What the streams under way notice of adapters that are not on the device.

Streams decode without end while further requests arrive at a steady rate. In one variant their adapters are resident,
in the other nobody ever asked for them: their components are read from files, while the streams go on. The arrivals'
prompts slow the streams down in both, so the ratio shows what coldness adds.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from hilora_lab.bench.adapter_sources import ColdAdapterSource
from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.figure import Measured
from hilora_lab.bench.pairing import ratios, summarise
from hilora_lab.bench.session import BenchSession
from hilora_lab.bench.workload import NUM_CANDIDATES, adapter_bytes, make_plan

_NUM_FILES = 12
_ARRIVAL_TOKENS = 4
"""Answers of arrivals are short: each is gone before the next but one comes."""
_SPARE_ADAPTERS = 24
"""Room for cold adapters beside the workload's."""


def measure_cold_adapter(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`cold_adapter_p99_itl`, and the 99th percentile without any arrivals beside it."""
    found = Measured()
    if "cold_adapter_p99_itl" not in wanted:
        return found
    sizes = session.sizes
    features = session.features()
    with tempfile.TemporaryDirectory(prefix="hilora-bench-") as name:
        source = ColdAdapterSource(session.workload, folder=Path(name), features=features, num_files=_NUM_FILES)
        num_resident = len(session.workload.adapters) + _SPARE_ADAPTERS
        with closing(
            session.drive(
                source=source,
                max_num_seqs=sizes.cold_streams + 4,
                max_model_len=sizes.prompt_len + 2 * sizes.cold_steps,
                roc_pool_bytes=num_resident * adapter_bytes(features),
            )
        ) as drive:
            rng = np.random.default_rng(session.seed)
            warm_plans = itertools.cycle(session.workload.plans)
            cold_ids = itertools.count()

            def warm() -> BenchRequest:
                return BenchRequest(prompt=_arrival_prompt(session), plan=next(warm_plans))

            def cold() -> BenchRequest:
                ids = [f"cold-{next(cold_ids)}" for _ in range(NUM_CANDIDATES)]
                return BenchRequest(prompt=_arrival_prompt(session), plan=make_plan(ids, rng))

            variants: dict[str, Callable[[int], float]] = {
                "without_arrivals": lambda _: _p99_seconds(session, drive, None),
                "warm_arrivals": lambda _: _p99_seconds(session, drive, warm),
                "cold_arrivals": lambda _: _p99_seconds(session, drive, cold),
            }
            seconds = session.take_turns("cold adapters", variants)
        found.extras["cold_adapter_reads"] = {"files_read": source.num_reads}
    found.ratios["cold_adapter_p99_itl"] = summarise(ratios(seconds["cold_arrivals"], seconds["warm_arrivals"]))
    for name, values in seconds.items():
        found.extras[f"p99_itl_ms_{name}"] = summarise([1e3 * value for value in values]).as_json()
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _p99_seconds(session: BenchSession, drive: EngineDrive, arrival: Callable[[], BenchRequest] | None) -> float:
    """The 99th percentile of the time between a stream's tokens, over one round of steps."""
    sizes = session.sizes
    streams = session.requests(session.prompts(sizes.cold_streams), has_plans=True)
    # Enough tokens that no stream ends before the last arrival has.
    drive.start(streams, new_tokens=2 * sizes.cold_steps)
    intervals: list[float] = []
    last = time.perf_counter()
    for step_idx in range(sizes.cold_steps):
        if arrival is not None and step_idx % sizes.cold_interval == 0:
            drive.submit(arrival(), new_tokens=_ARRIVAL_TOKENS)
        drive.step()
        now = time.perf_counter()
        intervals.append(now - last)
        last = now
    drive.abort_all()
    return percentile(intervals, 0.99)


def _arrival_prompt(session: BenchSession) -> tuple[int, ...]:
    return session.prompts(1, length=session.sizes.cold_prompt_len)[0]
