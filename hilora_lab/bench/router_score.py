"""How long the router thinks about a text among ten thousand adapters: its decision, without encoder and doors."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hilora.routing_plan import RoutingMode
from hilora.sequence_routing import AdapterProfile, RoutingSettings, SequenceRouter
from hilora_lab.bench.router_feed import synthetic_samples
from hilora_lab.bench.router_texts import task_name
from services.router.infra.index_kinds import build_index
from services.router.pool_index import IndexRules, build_pool_index

_EMBEDDING_DIM = 384
_LORA_RANK = 16
_NUM_WARM_UP = 50


def measure_scoring(num_adapters: int, *, num_texts: int = 500, seed: int = 0) -> NDArray[np.float64]:
    """Milliseconds of each decision, one after another: search, posterior, budgets, and the way to a thread and back.

    The pool is searched as the router's own rules say for its size; the texts are ones the adapters never showed.
    """
    rng = np.random.default_rng(seed)
    centers_LE = rng.standard_normal((num_adapters, _EMBEDDING_DIM), dtype=np.float32)
    centers_LE /= np.linalg.norm(centers_LE, axis=1, keepdims=True)
    own = rng.integers(num_adapters, size=num_texts + _NUM_WARM_UP)
    texts_NE = synthetic_samples(centers_LE[own], seed=seed + 1)[:, 0]
    profiles = [
        AdapterProfile(
            adapter_id=task_name(task), adapter_name=task_name(task), lora_rank=_LORA_RANK, samples_ME=samples_ME
        )
        for task, samples_ME in enumerate(synthetic_samples(centers_LE, seed=seed + 2))
    ]
    router = SequenceRouter(
        profiles,
        catalog_generation=1,
        build_index=partial(build_pool_index, rules=IndexRules(), build=build_index),
    )
    return asyncio.run(_timed(router, texts_NE))


async def _timed(router: SequenceRouter, texts_NE: NDArray[np.float32]) -> NDArray[np.float64]:
    settings = RoutingSettings.for_mode(RoutingMode.CALIBRATED)
    milliseconds: list[float] = []
    for z_E in texts_NE:
        started = time.perf_counter()
        await asyncio.to_thread(router.decide, z_E, settings=settings)
        milliseconds.append((time.perf_counter() - started) * 1e3)
    return np.array(milliseconds[_NUM_WARM_UP:])
