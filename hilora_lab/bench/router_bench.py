"""`hilora bench router`: what the router adds to an answer, beside what another proxy adds, on the same backend.

The router is the product's own process with its own encoder and settings, in front of a pool of synthetic statistics.
The backend answers at a fixed speed over both doors; so a latency through somebody, less the one without anybody, is
what that somebody adds. All processes share the machine; `extras` says what each spent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hilora_lab.bench.machine import describe_machine
from hilora_lab.bench.router_backend import MODEL, BackendSpeed
from hilora_lab.bench.router_feed import FeedOrder
from hilora_lab.bench.router_load import LoadOrder
from hilora_lab.bench.router_memory import describe_growth
from hilora_lab.bench.router_peer import (
    CHOOSING_PEER,
    PROXY_PEER,
    PeerInstallation,
    choosing_process,
    proxy_process,
)
from hilora_lab.bench.router_processes import ServerProcess, SpeakingProcess, free_port, process_use
from hilora_lab.bench.router_score import measure_scoring

LEVELS = ("1", "32", "256")
"""Numbers of streams, as the report's keys."""
_SHORT_ANSWER_TOKENS = 4
_CACHED_TEXTS = 64
_CACHED_STREAMS = 32
_MEMORY_STREAMS = 64
_MEMORY_SLICES = 20
_FIRST_NUMBER_STEP = 10_000_000

GOALS: dict[str, tuple[str, float]] = {
    "added_latency_ms_p50": ("<=", 15.0),
    "added_latency_ms_p99": ("<=", 60.0),
    "score_10k_ms": ("<=", 1.0),
    "requests_per_second_cached": (">=", 300.0),
    "memory_bytes_per_request": ("<=", 64.0),
    "peer_ratio": ("<=", 0.5),
}
"""What each figure should reach; latencies at 32 streams, the ratio at every number of streams."""

_JUDGED_LEVEL = "32"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and of how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterBenchOrder:
    """What to measure."""

    num_adapters: int = 1000
    """Size of the router's pool."""
    num_scored: int = 10_000
    """Size of the pool of `score_10k_ms`."""
    speed: BackendSpeed = field(default_factory=lambda: BackendSpeed(ttft_seconds=0.1, itl_seconds=0.05))
    """Of the backend, where latencies are measured."""
    answer_tokens: int = 32
    seconds: Mapping[str, float] = field(default_factory=lambda: {"1": 60.0, "32": 40.0, "256": 40.0})
    """How long each number of streams is held, by level."""
    cached_seconds: float = 30.0
    memory_requests: int = 100_000
    peer: PeerInstallation | None = None
    peer_reason: str = "no peer was asked for: give --peer install or --peer-python"
    """Why there is no peer, where there is none."""

    @classmethod
    def quick(cls, **changes: Any) -> RouterBenchOrder:
        """The same figures from fewer requests."""
        return cls(seconds={"1": 12.0, "32": 10.0, "256": 10.0}, cached_seconds=8.0, memory_requests=2000, **changes)


def run_router_bench(order: RouterBenchOrder, *, on_progress: Progress) -> dict[str, Any]:
    """Measure everything; a quarter of an hour as it is by default."""
    started = time.perf_counter()
    machine = asdict(describe_machine())
    with tempfile.TemporaryDirectory(prefix="hilora-bench-") as folder:
        measured = asyncio.run(_Bench(order, Path(folder), on_progress).run())
    on_progress("score", 0, 1)
    scoring = measure_scoring(order.num_scored)
    on_progress("score", 1, 1)
    figures = {**measured["figures"], "score_10k_ms": round(float(np.median(scoring)), 3)}
    return {
        **figures,
        "goals": {key: f"{sign} {value:g}" for key, (sign, value) in GOALS.items()},
        "is_met": judged(figures),
        "num_adapters": order.num_adapters,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "machine": machine,
        "extras": {
            **measured["extras"],
            "backend_speed": asdict(order.speed),
            "answer_tokens": order.answer_tokens,
            "score_ms_p99": round(float(np.percentile(scoring, 99)), 3),
        },
    }


class _Bench:
    """The processes of one run and what is asked of them."""

    def __init__(self, order: RouterBenchOrder, folder: Path, on_progress: Progress) -> None:
        self._order = order
        self._folder = folder
        self._on_progress = on_progress
        self._num_orders = 0

    async def run(self) -> dict[str, Any]:
        """Everything that needs the processes."""
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(self._speaking("router_backend"))
            self._on_progress("start", 1, 4)
            feed_order = json.dumps(asdict(FeedOrder(num_adapters=self._order.num_adapters)))
            feed = await stack.enter_async_context(self._speaking("router_feed", feed_order))
            self._on_progress("start", 2, 4)
            load = await stack.enter_async_context(self._speaking("router_load"))
            router = await stack.enter_async_context(self._router(feed=feed, backend=backend))
            self._on_progress("start", 3, 4)
            targets = {"direct": _Target(port=backend.opening["http_port"], model=MODEL)}
            targets["router"] = _Target(port=router.port, model="auto", pid=router.pid)
            for name, process in self._peers(backend).items():
                await stack.enter_async_context(process)
                targets[name] = _Target(port=process.port, model=MODEL, pid=process.pid)
            self._on_progress("start", 4, 4)
            latencies = await self._latencies(backend, load, targets)
            cached = await self._cached(backend, load, targets["router"])
            memory = await self._memory(load, targets["router"])
        return _described(self._order, latencies, cached, memory)

    async def _latencies(
        self, backend: SpeakingProcess, load: SpeakingProcess, targets: Mapping[str, _Target]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """What came of each number of streams through each target, target by target within a level."""
        await backend.ask(asdict(self._order.speed))
        answer_seconds = self._order.speed.ttft_seconds + self._order.answer_tokens * self._order.speed.itl_seconds
        measured: dict[str, dict[str, dict[str, Any]]] = {}
        done = 0
        for level, seconds in self._order.seconds.items():
            measured[level] = {}
            for name, target in targets.items():
                self._on_progress("latency", done, len(self._order.seconds) * len(targets))
                measured[level][name] = await self._loaded(
                    load,
                    target,
                    num_streams=int(level),
                    seconds=seconds,
                    max_tokens=self._order.answer_tokens,
                    # Streams begin spread over an answer, or they would come in step for ever.
                    spread_seconds=answer_seconds if int(level) > 1 else 0.0,
                )
                done += 1
                self._on_progress("latency", done, len(self._order.seconds) * len(targets))
        return measured

    async def _cached(self, backend: SpeakingProcess, load: SpeakingProcess, router: _Target) -> dict[str, Any]:
        """As many short answers as go through, to the same texts again and again."""
        self._on_progress("cached", 0, 1)
        await backend.ask(asdict(BackendSpeed(ttft_seconds=0.0, itl_seconds=0.0)))
        same = {"num_texts": _CACHED_TEXTS, "max_tokens": _SHORT_ANSWER_TOKENS, "num_streams": _CACHED_STREAMS}
        number = self._next_number()
        await self._loaded(load, router, **same, seconds=2.0, first_number=number)
        measured = await self._loaded(load, router, **same, seconds=self._order.cached_seconds, first_number=number)
        self._on_progress("cached", 1, 1)
        return measured

    async def _memory(self, load: SpeakingProcess, router: _Target) -> dict[str, Any]:
        """What the router holds while requests go by, half of them with texts that were there before."""
        assert router.pid is not None, "the router is a process of ours"
        per_slice = max(1, self._order.memory_requests // _MEMORY_SLICES)
        held: list[tuple[int, int]] = []
        failures: dict[str, int] = {}
        num_answered = 0
        for place in range(_MEMORY_SLICES):
            self._on_progress("memory", place * per_slice, _MEMORY_SLICES * per_slice)
            said = await self._loaded(
                load,
                router,
                num_streams=_MEMORY_STREAMS,
                seconds=600.0,
                max_requests=per_slice,
                max_tokens=_SHORT_ANSWER_TOKENS,
                num_texts=None if place % 2 else _CACHED_TEXTS,
            )
            num_answered += said["num_answered"]
            failures |= said["failures"]
            held.append((num_answered, process_use(router.pid).resident_bytes))
        self._on_progress("memory", _MEMORY_SLICES * per_slice, _MEMORY_SLICES * per_slice)
        return describe_growth(held) | {"failures": failures}

    async def _loaded(self, load: SpeakingProcess, target: _Target, **ordered: Any) -> dict[str, Any]:
        """Run one order of load; adds what the target's process spent."""
        ordered.setdefault("first_number", self._next_number())
        order = LoadOrder(port=target.port, model=target.model, **ordered)
        before = None if target.pid is None else process_use(target.pid).cpu_seconds
        said = await load.ask(asdict(order))
        if before is not None and target.pid is not None:
            spent = process_use(target.pid).cpu_seconds - before
            said["cpu_share"] = round(spent / said["seconds"], 3)
            said["cpu_ms_per_request"] = round(spent * 1e3 / max(1, said["num_answered"]), 3)
        return said

    def _next_number(self) -> int:
        self._num_orders += 1
        return self._num_orders * _FIRST_NUMBER_STEP

    def _speaking(self, module: str, *arguments: str) -> SpeakingProcess:
        return SpeakingProcess(f"hilora_lab.bench.{module}", *arguments, log=self._folder / f"{module}.log")

    def _peers(self, backend: SpeakingProcess) -> dict[str, ServerProcess]:
        """Those that are compared, by name."""
        peer, port = self._order.peer, backend.opening["http_port"]
        if peer is None:
            return {}
        chooser = choosing_process(peer, num_adapters=self._order.num_adapters, backend_port=port, folder=self._folder)
        return {CHOOSING_PEER: chooser, PROXY_PEER: proxy_process(peer, backend_port=port, folder=self._folder)}

    def _router(self, *, feed: SpeakingProcess, backend: SpeakingProcess) -> ServerProcess:
        port = free_port()
        settings = {
            "RPC_PORT": "0",
            "REST_PORT": str(port),
            "REGISTRY_ADDRESS": feed.opening["rpc_address"],
            "WORKER_ADDRESSES": backend.opening["rpc_address"],
        }
        return ServerProcess(
            [sys.executable, "-m", "services.router"],
            port=port,
            ready_path="/readyz",
            environment={f"HILORA_ROUTER_{name}": value for name, value in settings.items()},
            log=self._folder / "router.log",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """Who is asked."""

    port: int
    model: str
    pid: int | None = None
    """None for the backend itself: what it spends is in every figure."""


def _described(
    order: RouterBenchOrder,
    latencies: Mapping[str, Mapping[str, Mapping[str, Any]]],
    cached: Mapping[str, Any],
    memory: Mapping[str, Any],
) -> dict[str, Any]:
    """The figures and what stands behind them."""
    own = {level: added_latency(by_target, "router") for level, by_target in latencies.items()}
    peers = {
        name: {level: added_latency(by_target, name) for level, by_target in latencies.items()}
        for name in (CHOOSING_PEER, PROXY_PEER)
    }
    peer_p50: dict[str, Any] = {"peer": None if order.peer is None else order.peer.name_of(CHOOSING_PEER)}
    peer_p50 |= {level: added and added["p50"] for level, added in peers[CHOOSING_PEER].items()}
    if order.peer is None:
        peer_p50["reason"] = order.peer_reason
    return {
        "figures": {
            "added_latency_ms_p50": {level: added and added["p50"] for level, added in own.items()},
            "added_latency_ms_p99": {level: added and added["p99"] for level, added in own.items()},
            "requests_per_second_cached": round(cached["num_answered"] / cached["seconds"], 1),
            "memory_bytes_per_request": memory["bytes_per_request"],
            "peer_added_latency_ms_p50": peer_p50,
        },
        "extras": {
            "added": {"router": own, **peers},
            "peer_versions": None if order.peer is None else dict(order.peer.versions),
            "latencies": {
                level: {name: _summary(said) for name, said in by_target.items()}
                for level, by_target in latencies.items()
            },
            "cached": _summary(cached),
            "memory": memory,
        },
    }


def added_latency(by_target: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, float] | None:
    """What a target adds to the backend's own median, in milliseconds; None without answers of both.

    The percentiles are those of the target's latencies: whatever makes the backend late at times counts as the
    target's own.
    """
    if name not in by_target or not by_target[name]["ttfts"] or not by_target["direct"]["ttfts"]:
        return None
    ttfts, e2es = (
        (np.array(by_target[name][key]) - np.median(by_target["direct"][key])) * 1e3 for key in ("ttfts", "e2es")
    )
    return {
        "p50": round(float(np.percentile(ttfts, 50)), 2),
        "p99": round(float(np.percentile(ttfts, 99)), 2),
        "e2e_p50": round(float(np.percentile(e2es, 50)), 2),
        "e2e_p99": round(float(np.percentile(e2es, 99)), 2),
    }


def _summary(said: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in said.items() if key not in {"ttfts", "e2es"}}
    kept["seconds"] = round(said["seconds"], 2)
    kept["num_measured"] = len(said["ttfts"])
    for key in ("ttfts", "e2es"):
        if said[key]:
            p50, p99 = np.percentile(said[key], [50, 99]) * 1e3
            kept[key.removesuffix("s")] = {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}
    return kept


def judged(figures: Mapping[str, Any]) -> dict[str, bool | None]:
    """Whether each goal is met; None for what could not be measured."""
    own, peer = figures["added_latency_ms_p50"], figures["peer_added_latency_ms_p50"]
    values: dict[str, float | None] = {
        "added_latency_ms_p50": own[_JUDGED_LEVEL],
        "added_latency_ms_p99": figures["added_latency_ms_p99"][_JUDGED_LEVEL],
        "score_10k_ms": figures["score_10k_ms"],
        "requests_per_second_cached": figures["requests_per_second_cached"],
        "memory_bytes_per_request": figures["memory_bytes_per_request"],
        "peer_ratio": max((own[level] / peer[level] for level in own if own[level] and peer[level]), default=None),
    }
    return {key: None if value is None else _holds(key, value) for key, value in values.items()}


def _holds(key: str, value: float) -> bool:
    sign, goal = GOALS[key]
    return value <= goal if sign == "<=" else value >= goal
