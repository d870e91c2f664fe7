"""`hilora bench engine`: all figures of the engine in one process, and the report."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hilora.errors import InvalidInput
from hilora_lab.bench.breakdown import measure_breakdown
from hilora_lab.bench.cold_figure import measure_cold_adapter
from hilora_lab.bench.decode_figures import measure_decode, measure_idle, measure_prefill
from hilora_lab.bench.figure import FIGURES, Measured, Progress
from hilora_lab.bench.machine import describe_machine
from hilora_lab.bench.peer_figures import measure_continuous_batching, measure_peers
from hilora_lab.bench.pool_figure import measure_pool
from hilora_lab.bench.session import TINY_SIZES, BenchSession, BenchSizes
from hilora_lab.bench.workload import LORA_RANK, NUM_ADAPTERS, NUM_CANDIDATES, NUM_PLANS

_GROUPS: tuple[Callable[[BenchSession, Collection[str]], Measured], ...] = (
    measure_decode,
    measure_prefill,
    measure_idle,
    measure_peers,
    measure_continuous_batching,
    measure_pool,
    measure_cold_adapter,
)
"""Each measures those of its figures that are wanted."""

BENCH_MODELS = ("qwen2.5-0.5b", "llama-1024x12")
"""Models of a run; what both measure is reported from the first."""

_ON_ONE_MODEL = frozenset({"vs_peft_arrow", "vs_transformers_cb_768", "pool_2000_vs_20", "cold_adapter_p99_itl"})
"""Figures that take long on the larger model; a whole run measures them on the last one."""
_QUICK = frozenset({"hilora_vs_base_decode_b8", "hilora_vs_base_decode_b32"})
_QUICK_ON_SMALLER = _QUICK | {"vs_generate_b8", "vs_generate_b32"}
_QUICK_DECODE_TOKENS = 17
_PROFILED_BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOrder:
    """What to measure.

    Raises:
        InvalidInput: `unknown_figure`.
    """

    models: tuple[str, ...] = BENCH_MODELS
    is_quick: bool = False
    only: tuple[str, ...] = ()
    """Figures by key, each on every model; empty is the choice of a whole or a quick run."""
    seed: int = 0
    num_rounds: int = 5
    has_breakdown: bool = True
    """Whether to say where the time of decode steps goes; a quick run has no time for it."""

    def __post_init__(self) -> None:
        unknown = [key for key in self.only if key not in FIGURES]
        if unknown:
            raise InvalidInput(
                f"No such figure: {', '.join(unknown)}.",
                code="unknown_figure",
                remedy=f"Choose from {', '.join(FIGURES)}.",
                place="only",
            )

    def keys_for(self, model: str) -> frozenset[str]:
        """The figures to measure on a model."""
        if self.only:
            return frozenset(self.only)
        is_last = model == self.models[-1]
        if self.is_quick:
            return _QUICK_ON_SMALLER if is_last else _QUICK
        return frozenset(FIGURES) if is_last else frozenset(FIGURES) - _ON_ONE_MODEL

    def sizes_for(self, model: str) -> BenchSizes:
        """How much is measured of a model."""
        if model == "tiny":
            return replace(TINY_SIZES, num_rounds=self.num_rounds)
        sizes = BenchSizes(num_rounds=self.num_rounds)
        return replace(sizes, decode_tokens=_QUICK_DECODE_TOKENS) if self.is_quick else sizes


def run_engine_bench(order: BenchOrder, *, on_progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measure what an order asks for.

    Returns:
        The report, ready for JSON. `ratios` holds each figure of the first model that has it; `models` all of them.
    """
    started_at = time.perf_counter()
    machine = describe_machine()
    by_model: dict[str, Measured] = {}
    breakdowns: dict[str, dict[str, dict[str, float]]] = {}
    for model in order.models:
        session = BenchSession(
            model=model,
            sizes=order.sizes_for(model),
            seed=order.seed,
            on_progress=lambda title, done, total, model=model: on_progress(f"{model}: {title}", done, total),
        )
        found = Measured()
        for measure in _GROUPS:
            found.add(measure(session, order.keys_for(model)))
            gc.collect()
        by_model[model] = found
        if order.has_breakdown and not order.is_quick:
            on_progress(f"{model}: profile", 0, 1)
            breakdowns[model] = _breakdowns(session)
            on_progress(f"{model}: profile", 1, 1)
        del session
        gc.collect()
    return {
        "machine": asdict(machine),
        "workload": {
            "adapters": NUM_ADAPTERS,
            "lora_rank": LORA_RANK,
            "target_modules": "all linear layers of the blocks",
            "candidates_per_request": NUM_CANDIDATES,
            "plans": NUM_PLANS,
            "dtype": "float32",
            "seed": order.seed,
            "is_quick": order.is_quick,
            "only": list(order.only),
            "sizes": {model: asdict(order.sizes_for(model)) for model in order.models},
        },
        **_ratios(by_model, order.models),
        "models": {
            model: {
                "ratios": {key: found.ratios[key].as_json() for key in FIGURES if key in found.ratios},
                "extras": found.extras,
            }
            for model, found in by_model.items()
        },
        "breakdown_ms": breakdowns,
        "total_seconds": round(time.perf_counter() - started_at, 1),
    }


def _ratios(by_model: Mapping[str, Measured], models: Sequence[str]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for key, figure in FIGURES.items():
        model = next((name for name in models if key in by_model[name].ratios), None)
        if model is None:
            continue
        summary = by_model[model].ratios[key]
        ratios[key] = summary.as_json()
        figures[key] = {
            "title": figure.title,
            "model": model,
            "goal": figure.goal_text,
            "is_met": figure.is_met(summary.median),
        }
    return {"ratios": ratios, "figures": figures}


def _breakdowns(session: BenchSession) -> dict[str, dict[str, float]]:
    return {
        f"{name}_b{size}": measure_breakdown(session, batch_size=size, has_plans=has_plans)
        for size in _PROFILED_BATCHES
        for name, has_plans in (("base", False), ("hilora", True))
    }
