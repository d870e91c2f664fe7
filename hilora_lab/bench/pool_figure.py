"""Throughput as the pool of adapters grows while the device's share of it shrinks, and what an adapter costs.

All pools have the same device tier, which holds a twentieth of the largest; the host tier holds everything. Requests
choose their adapters by Zipf's law. Adapters target `q_proj` and `v_proj` only: thousands on all layers would not fit
the machines that this is meant for, and what is measured is bookkeeping and copying.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from hilora.adapter import RocBasis
from hilora_lab.bench.adapter_sources import RandomAdapterSource
from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.figure import Measured
from hilora_lab.bench.machine import resident_bytes
from hilora_lab.bench.pairing import ratios, summarise
from hilora_lab.bench.session import BenchSession
from hilora_lab.bench.workload import NUM_CANDIDATES, adapter_bytes, adapter_id, make_plan
from services.worker.infra.component_cache import ComponentCache

_TARGETS = ("q_proj", "v_proj")
_BATCH = 8
_DEVICE_SHARE = 20
"""One adapter in so many of the largest pool fits the device."""
_ZIPF_EXPONENT = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _HostTier:
    cache: ComponentCache
    bytes_per_adapter: float
    """What the process grew by."""


def measure_pool(session: BenchSession, wanted: Collection[str]) -> Measured:
    """`pool_2000_vs_20`, the same for the sizes between, and bytes per adapter over its components' bytes."""
    found = Measured()
    if "pool_2000_vs_20" not in wanted:
        return found
    sizes = session.sizes
    features = session.features(_TARGETS)
    num_bytes = adapter_bytes(features)
    counts = sizes.pool_counts
    # A batch and the requests behind it need their candidates at once, whatever the share says of tiny pools.
    num_resident = max(counts[-1] // _DEVICE_SHARE, NUM_CANDIDATES * _BATCH)
    host = _host_tier(RandomAdapterSource(features), num_adapters=counts[-1], num_bytes=num_bytes)
    with ExitStack() as stack:
        drives = {
            count: stack.enter_context(
                closing(
                    session.drive(
                        source=host.cache,
                        max_num_seqs=_BATCH,
                        max_model_len=sizes.pool_prompt_len + sizes.new_tokens,
                        roc_pool_bytes=num_resident * num_bytes,
                    )
                )
            )
            for count in counts
        }
        turns = {str(count): _turn(session, drive, count) for count, drive in drives.items()}
        speeds = session.take_turns("pool of adapters", turns)
        stats = drives[counts[-1]].engine.stats()
    first, last = str(counts[0]), str(counts[-1])
    found.ratios["pool_2000_vs_20"] = summarise(ratios(speeds[last], speeds[first]))
    for count in map(str, counts):
        found.extras[f"tokens_per_second_pool_{count}"] = summarise(speeds[count]).as_json()
    for count in map(str, counts[1:-1]):
        found.extras[f"pool_{count}_vs_{first}"] = summarise(ratios(speeds[count], speeds[first])).as_json()
    found.extras["pool_memory"] = {
        "component_bytes_per_adapter": num_bytes,
        "host_bytes_per_adapter": round(host.bytes_per_adapter),
        "host_over_components": round(host.bytes_per_adapter / num_bytes, 4),
        "device_bytes_per_adapter": round(stats.roc_pool_used_bytes / len(stats.resident_adapter_ids)),
        "num_on_host": counts[-1],
        "num_on_device": len(stats.resident_adapter_ids),
    }
    return found


def _host_tier(source: RandomAdapterSource, *, num_adapters: int, num_bytes: int) -> _HostTier:
    """All adapters in main memory, and what the process grew by for it."""
    cache = ComponentCache(source, capacity_bytes=2 * num_adapters * num_bytes)
    # The first one brings in code and buffers that all share.
    cache.fetch(adapter_id(0), RocBasis.SVD)
    before = resident_bytes()
    for idx in range(1, num_adapters):
        cache.fetch(adapter_id(idx), RocBasis.SVD)
    return _HostTier(cache=cache, bytes_per_adapter=(resident_bytes() - before) / max(1, num_adapters - 1))


def _turn(session: BenchSession, drive: EngineDrive, count: int) -> Callable[[int], float]:
    sizes = session.sizes
    shares = 1.0 / np.arange(1, count + 1) ** _ZIPF_EXPONENT
    shares /= shares.sum()

    def run(round_idx: int) -> float:
        # Popularity is the same draw for all pools, so that only the pool's size differs.
        rng = np.random.default_rng([session.seed, round_idx % (1 << 32)])
        prompts = session.prompts(sizes.pool_requests, length=sizes.pool_prompt_len, round_idx=round_idx)
        requests: list[BenchRequest] = []
        for prompt in prompts:
            chosen = rng.choice(count, size=NUM_CANDIDATES, replace=False, p=shares)
            requests.append(BenchRequest(prompt=prompt, plan=make_plan([adapter_id(int(idx)) for idx in chosen], rng)))
        return drive.complete(requests, new_tokens=sizes.new_tokens).tokens_per_second

    return run
