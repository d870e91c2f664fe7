"""`hilora bench registry`: ten thousand adapters in, followed by a router, searched, and updated while it routes.

Nothing stands in for a part of the product: adapters are PEFT folders that the ingest process fetches, validates,
decomposes, profiles and publishes; the catalogue is in Redis; the router follows over gRPC and plans with its own code.
Only the sentence encoder is a cheap one, because its speed is not what is asked.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilora_lab.bench.machine import describe_machine
from hilora_lab.bench.registry_processes import RegistryProcesses, RouterProcess
from hilora_lab.bench.registry_router import RouterOrder
from hilora_lab.bench.search_figures import SearchFigure, measure_search
from hilora_lab.bench.synthetic_pool import EMBEDDING_DIM, NUM_SAMPLES, AdapterWriter, write_encoder
from services.common.catalog_feed import CatalogSnapshot, CatalogUpsert, follow_catalog
from services.router.pool_index import IndexKind

_OUTSTANDING = 64
_NUM_UPDATES = 8
_UPDATE_SECONDS = 300.0
_FLOAT32 = 4
_FLOAT64 = 8

GOALS: dict[str, tuple[str, float]] = {
    "ingest_per_second": (">=", 0.0),
    "artifact_bytes_per_adapter": ("<=", float("inf")),
    "router_follow_seconds": ("<=", 20.0),
    "catalog_bytes_per_adapter": ("<=", 4096.0),
    "search_ms_10k": ("<=", 1.0),
    "search_ms_100k": ("<=", 5.0),
    "update_p99_ratio": ("<=", 1.5),
}
"""The keys of the report, a contract, with what each should reach; the first two have no goal."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryBenchOrder:
    """What to measure."""

    testbed: Path
    """Folder of a testbed: its base is served, and its adapters' shapes are taken."""
    num_adapters: int = 10_000
    """Size of the pool that is ingested and followed."""
    searched: tuple[int, int] = (10_000, 100_000)
    """Sizes of the pools that are searched."""
    quiet_seconds: float = 20.0
    """How long requests are routed before the update."""


def run_registry_bench(order: RegistryBenchOrder, *, on_progress: Progress) -> dict[str, Any]:
    """Measure everything; takes some minutes per thousand adapters."""
    started = time.perf_counter()
    machine = asdict(describe_machine())
    with tempfile.TemporaryDirectory(prefix="hilora-bench-") as folder:
        served = asyncio.run(_measure_served(order, Path(folder), on_progress))
    small, large = order.searched
    on_progress("search", 0, 2)
    searches = measure_search(small, kinds=(IndexKind.DENSE, IndexKind.EXACT, IndexKind.BYTE))
    on_progress("search", 1, 2)
    searches += measure_search(large, kinds=(IndexKind.BYTE, IndexKind.EXACT, IndexKind.IVF))
    on_progress("search", 2, 2)
    figures = {
        **served["figures"],
        "search_ms_10k": _search_ms(searches, IndexKind.EXACT, small),
        "search_ms_100k": _search_ms(searches, IndexKind.BYTE, large),
    }
    return {
        **figures,
        "goals": {key: f"{sign} {value:g}" for key, (sign, value) in GOALS.items() if 0.0 < value < float("inf")},
        "is_met": {
            key: figures[key] <= value for key, (sign, value) in GOALS.items() if sign == "<=" and value < float("inf")
        },
        "extras": {**served["extras"], "searches": [asdict(search) for search in searches]},
        "num_adapters": order.num_adapters,
        "machine": machine,
        "seconds": round(time.perf_counter() - started, 1),
    }


async def _measure_served(order: RegistryBenchOrder, folder: Path, on_progress: Progress) -> dict[str, Any]:
    encoder, incoming = folder / "encoder", folder / "incoming"
    write_encoder(encoder)
    incoming.mkdir()
    writer = AdapterWriter(next(path for path in sorted((order.testbed / "adapters").iterdir()) if path.is_dir()))
    registry = RegistryProcesses(folder=folder, base_model=order.testbed / "base", encoder=encoder, incoming=incoming)
    async with registry:
        intake = _PacedIngest(registry, writer, incoming)
        await intake.run(range(1), on_progress=None)  # the ingest process has loaded everything
        started = time.perf_counter()
        await intake.run(range(1, order.num_adapters), on_progress=on_progress)
        ingest_seconds = time.perf_counter() - started
        stored = await asyncio.to_thread(_folder_bytes, registry.artifacts)
        on_progress("follow", 0, 1)
        router_order = RouterOrder(
            registry_address=registry.address, encoder=str(encoder), num_adapters=order.num_adapters
        )
        async with RouterProcess(router_order, log=folder / "router.log") as router:
            followed = await router.said()
            on_progress("follow", 1, 1)
            latencies = await _measure_update(router, intake, order, on_progress)
        await intake.stop()
        snapshot_bytes = await _snapshot_bytes_per_adapter(registry)
    statistics_bytes = _statistics_bytes(order.num_adapters) + followed["lexical_bytes"] / order.num_adapters
    held_bytes = followed["held_bytes"] / order.num_adapters
    quiet, updating = (float(np.percentile(latencies[name]["latencies"], 99)) for name in ("quiet", "updating"))
    return {
        "figures": {
            "ingest_per_second": round((order.num_adapters - 1) / ingest_seconds, 2),
            "artifact_bytes_per_adapter": round(stored / order.num_adapters),
            "router_follow_seconds": round(followed["follow_seconds"], 2),
            "catalog_bytes_per_adapter": round(held_bytes - statistics_bytes),
            "update_p99_ratio": round(updating / quiet, 3),
        },
        "extras": {
            "statistics_bytes_per_adapter": round(statistics_bytes),
            "snapshot_bytes_per_adapter": round(snapshot_bytes),
            "lexical_bytes_per_adapter": round(followed["lexical_bytes"] / order.num_adapters),
            "held_bytes_per_adapter": round(held_bytes),
            "route_p50_ms_quiet": _percentile_ms(latencies["quiet"], 50),
            "route_p50_ms_updating": _percentile_ms(latencies["updating"], 50),
            "route_p99_ms_quiet": round(quiet * 1e3, 3),
            "route_p99_ms_updating": round(updating * 1e3, 3),
            "num_routes_quiet": len(latencies["quiet"]["latencies"]),
            "num_routes_updating": len(latencies["updating"]["latencies"]),
            "seconds_until_routable": round(latencies["updating"]["seconds_until_routable"], 3),
            "refit_seconds": round(latencies["updating"]["refit_seconds"], 2),
            "top_1": latencies["quiet"]["top_1"],
            "index": followed["index"],
            "temperature": followed["temperature"],
        },
    }


class _PacedIngest:
    """Writes adapters and has them ingested, so many at a time; a folder goes once its adapter is published.

    It follows the catalogue once and for all: another snapshot of the whole would be another load to measure.
    """

    def __init__(self, registry: RegistryProcesses, writer: AdapterWriter, incoming: Path) -> None:
        self._registry = registry
        self._writer = writer
        self._incoming = incoming
        self._feed = follow_catalog(
            registry.channel, peer="registry", without_samples=True, read=lambda entry: entry.adapter_name
        )

    async def run(self, tasks: range, *, on_progress: Progress | None) -> None:
        """Return once all are in the catalogue."""
        waiting = {f"task-{task}" for task in tasks}
        places = asyncio.Semaphore(_OUTSTANDING)
        submitting = asyncio.create_task(self._submit(tasks, places), name="submit")
        try:
            while True:
                news = await anext(self._feed)
                match news:
                    case CatalogSnapshot():
                        published = waiting.intersection(news.entries)
                    case CatalogUpsert():
                        published = waiting.intersection({news.entry})
                    case _:
                        continue
                for name in published:
                    waiting.discard(name)
                    places.release()
                    await asyncio.to_thread(shutil.rmtree, self._incoming / name, ignore_errors=True)
                if on_progress is not None:
                    on_progress("ingest", len(tasks) - len(waiting), len(tasks))
                if submitting.done():
                    submitting.result()
                if not waiting:
                    return
        finally:
            submitting.cancel()

    async def stop(self) -> None:
        """Stop following."""
        await self._feed.aclose()

    async def _submit(self, tasks: range, places: asyncio.Semaphore) -> None:
        for task in tasks:
            await places.acquire()
            name = f"task-{task}"
            await asyncio.to_thread(self._writer.write, task, self._incoming / name)
            await self._registry.ingest(name, self._incoming / name)


async def _measure_update(
    router: RouterProcess, intake: _PacedIngest, order: RegistryBenchOrder, on_progress: Progress
) -> dict[str, dict[str, Any]]:
    """Latencies without and during an update: new adapters arrive, and the pool is fitted anew in the background."""
    on_progress("routing", 0, 2)
    await asyncio.sleep(2.0)
    await router.phase()  # whatever warms up
    await asyncio.sleep(order.quiet_seconds)
    quiet = await router.phase()
    on_progress("routing", 1, 2)
    started = time.perf_counter()
    await intake.run(range(order.num_adapters, order.num_adapters + _NUM_UPDATES), on_progress=None)
    published = time.perf_counter()
    routable: float | None = None
    updating: dict[str, Any] = {"latencies": []}
    async with asyncio.timeout(_UPDATE_SECONDS):
        while True:
            await asyncio.sleep(0.1)
            said = await router.phase()
            updating["latencies"] += said["latencies"]
            if routable is None and said["num_adapters"] == order.num_adapters + _NUM_UPDATES:
                routable = time.perf_counter() - published
            if routable is not None and said["num_newcomers"] == 0:
                break
    on_progress("routing", 2, 2)
    return {
        "quiet": quiet,
        "updating": {
            **updating,
            "seconds_until_routable": routable,
            "refit_seconds": time.perf_counter() - started,
        },
    }


async def _snapshot_bytes_per_adapter(registry: RegistryProcesses) -> float:
    """What a cold router is sent of each adapter, in the mean."""
    feed = follow_catalog(registry.channel, peer="registry", without_samples=False, read=lambda entry: entry.ByteSize())
    try:
        async for news in feed:
            if isinstance(news, CatalogSnapshot):
                return sum(news.entries) / len(news.entries)
    finally:
        await feed.aclose()
    raise AssertionError("a feed ends when it is closed, not before")


def _statistics_bytes(num_adapters: int) -> int:
    """What an adapter's samples, Gaussian and indexed vector take: its statistics, as numbers alone."""
    samples = NUM_SAMPLES * EMBEDDING_DIM * _FLOAT32
    gaussian = min(EMBEDDING_DIM, num_adapters - 1) * _FLOAT64
    indexed = EMBEDDING_DIM * _FLOAT32 if num_adapters > 2_000 else EMBEDDING_DIM * _FLOAT64
    return samples + gaussian + indexed


def _percentile_ms(phase: dict[str, Any], share: float) -> float:
    return round(float(np.percentile(phase["latencies"], share)) * 1e3, 3)


def _search_ms(searches: list[SearchFigure], kind: IndexKind, num_adapters: int) -> float:
    return next(s.search_ms for s in searches if s.kind == kind.value and s.num_adapters == num_adapters)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
