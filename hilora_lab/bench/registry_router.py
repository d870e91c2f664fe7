"""A router without its doors, in a process of its own: `python -m hilora_lab.bench.registry_router`.

It follows a registry from nothing, reports how long that took and what it holds, then routes at a steady pace and
reports every latency until it is told to end. One JSON object a line on standard output; commands on standard input.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hilora.empirical_bayes import fit_pooled_eb
from hilora.errors import RegistryUnavailable
from hilora_lab.bench.machine import resident_bytes
from hilora_lab.bench.synthetic_pool import NUM_SAMPLES, task_texts
from services.common.allocator import give_back_freed_memory
from services.common.log import configure_logging
from services.common.sequence_encoder import SentenceTransformerEncoder
from services.router.catalog import CatalogView
from services.router.infra.catalog_replica import CatalogReplica
from services.router.infra.index_kinds import build_index
from services.router.infra.local_memory import LocalMemory
from services.router.models import ModelDirectory
from services.router.plan_record import PlanRecord, SessionRecord
from services.router.plans import Plans
from services.router.pool_index import IndexKind, IndexRules, build_pool_index
from services.router.ports import WorkerFleet
from services.router.routing import RouteText
from services.router.routing_options import RoutingOptions
from services.router.routing_rules import RoutingDefaults
from services.router.sessions import SessionMatching, Sessions

_NUM_QUERIES = 512
_ROUTES_PER_SECOND = 50.0
_FOLLOW_SECONDS = 600.0
_NUM_WARM_UP = 2500
"""More than a fit takes at a time: BLAS keeps working memory as large as the largest product so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterOrder:
    """What the process is started with, as JSON."""

    registry_address: str
    encoder: str
    num_adapters: int


class _ReadyVectors:
    """A `TextEmbedder` that has embedded everything before: the encoder's time is not what is measured."""

    def __init__(self, encoder: SentenceTransformerEncoder, texts: list[str]) -> None:
        self.encoder_id = encoder.encoder_id
        self._encoder = encoder
        self._vector_of = dict(zip(texts, encoder.encode(texts), strict=True))

    async def embed(self, text: str) -> NDArray[np.float32]:
        return self._vector_of[text]

    async def count_tokens(self, texts: Sequence[str]) -> int:
        return self._encoder.count_tokens(texts)


class _NoWorkers:
    """A `Workers` of which only the fleet is asked."""

    def fleet(self) -> WorkerFleet:
        return WorkerFleet(
            num_configured=0, num_live=0, highest_catalog_generation=0, base_model=None, max_model_len=None
        )

    def generate(self, order: object) -> object:
        raise AssertionError(f"this router only routes: {order}")


async def _run(order: RouterOrder) -> None:
    encoder = SentenceTransformerEncoder(order.encoder)
    rng = np.random.default_rng(0)
    tasks = rng.integers(order.num_adapters, size=_NUM_QUERIES)
    texts = [task_texts(int(task), first=NUM_SAMPLES + place, num=1)[0] for place, task in enumerate(tasks)]
    embedder = _ReadyVectors(encoder, texts)
    replica = CatalogReplica(
        order.registry_address,
        encoder=lambda: (encoder.encoder_id, encoder.embedding_dim),
        build_index=partial(build_pool_index, rules=IndexRules(), build=build_index),
    )
    # Two at once, for the libraries keep their working memory by thread.
    await asyncio.gather(*(asyncio.to_thread(_warm_up, encoder) for _ in range(2)))
    bytes_before = _settled_bytes()
    started = time.perf_counter()
    await replica.start()
    view = await _followed(replica, order.num_adapters)
    follow_seconds = time.perf_counter() - started
    held_bytes = _settled_bytes() - bytes_before
    _say(
        {
            "follow_seconds": follow_seconds,
            "held_bytes": held_bytes,
            "lexical_bytes": view.router.pool.lexical_bytes if view.router.pool else 0,
            "index": view.router.index.kind if view.router.index else None,
            "temperature": view.router.temperature,
        }
    )
    route_text = RouteText(
        catalog=replica,
        embedder=embedder,
        models=ModelDirectory(catalog=replica, workers=_NoWorkers(), base_model_name="base"),  # pyright: ignore[reportArgumentType]
        defaults=RoutingDefaults(),
        plans=Plans(LocalMemory[PlanRecord](ttl_seconds=60.0, max_records=1000)),
        sessions=Sessions(LocalMemory[SessionRecord](ttl_seconds=60.0, max_records=1000), matching=SessionMatching.OFF),
    )
    await _route_until_told(route_text, replica, texts, [f"task-{task}" for task in tasks])
    await replica.stop(grace_seconds=0)


async def _followed(replica: CatalogReplica, num_adapters: int) -> CatalogView:
    async with asyncio.timeout(_FOLLOW_SECONDS):
        while True:
            try:
                view = replica.view()
            except RegistryUnavailable:
                await asyncio.sleep(0.01)
                continue
            if view.router.num_adapters >= num_adapters:
                return view
            await asyncio.sleep(0.01)


async def _route_until_told(
    route_text: RouteText, replica: CatalogReplica, texts: list[str], owners: list[str]
) -> None:
    """Route at a steady pace. Each line of standard input ends a phase: the latencies since the last one are said."""
    loop = asyncio.get_running_loop()
    commands: asyncio.Queue[str] = asyncio.Queue()
    reader = asyncio.create_task(_read_commands(commands), name="commands")
    latencies: list[float] = []
    num_right = 0
    due = loop.time()
    number = 0
    while True:
        due = max(due + 1.0 / _ROUTES_PER_SECOND, loop.time())
        await asyncio.sleep(due - loop.time())
        place = number % len(texts)
        started = time.perf_counter()
        result = await route_text.route(texts[place], RoutingOptions())
        latencies.append(time.perf_counter() - started)
        budgets = result.decision.plan.budgets
        num_right += bool(budgets) and budgets[0].adapter_name == owners[place]
        number += 1
        if not commands.empty():
            command = commands.get_nowait()
            if command == "end":
                break
            view = replica.view()
            _say(
                {
                    "latencies": latencies,
                    "top_1": num_right / max(len(latencies), 1),
                    "num_adapters": view.router.num_adapters,
                    "num_newcomers": view.router.num_newcomers,
                }
            )
            latencies, num_right = [], 0
    reader.cancel()


async def _read_commands(commands: asyncio.Queue[str]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        commands.put_nowait(line.strip())
        if line.strip() == "end":
            return


def _warm_up(encoder: SentenceTransformerEncoder) -> None:
    """Have libraries set up what they set up once: it does not grow with a catalogue."""
    encoder.encode(task_texts(0))
    rng = np.random.default_rng(0)
    samples = [
        center_E + rng.standard_normal((NUM_SAMPLES, encoder.embedding_dim), dtype=np.float32)
        for center_E in 3.0 * rng.standard_normal((_NUM_WARM_UP, encoder.embedding_dim), dtype=np.float32)
    ]
    build_index(fit_pooled_eb(samples).gaussians, IndexKind.EXACT)


def _settled_bytes() -> int:
    """What the process holds once messages that were read are given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def _say(fields: dict[str, object]) -> None:
    print(json.dumps(fields), flush=True)  # noqa: T201  (the protocol)


if __name__ == "__main__":
    give_back_freed_memory()
    configure_logging(service="bench-router", level="WARNING")
    asyncio.run(_run(RouterOrder(**json.loads(sys.argv[1]))))
