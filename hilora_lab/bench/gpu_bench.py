"""Share of the base's decode speed that HiLoRA keeps on a GPU, beside what memory bandwidth allows.

Needs torch and transformers alone. Two ways of choosing adapters: every request from one small pool that is resident
as a whole, and no two requests with an adapter in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import InvalidInput
from hilora.routing_plan import GateParameters, GateScope, RocBudget, RoutingPlan
from hilora_lab.bench.engine_drive import BenchRequest, EngineDrive
from hilora_lab.bench.figure import Progress
from hilora_lab.bench.gpu_kernels import kernel_shares
from hilora_lab.bench.model_shape import build_base, find_shape, twin_of
from hilora_lab.bench.pairing import ratios, summarise, take_turns
from hilora_lab.bench.roofline import step_reads
from hilora_lab.bench.workload import (
    ALL_LINEARS,
    Features,
    adapter_bytes,
    adapter_id,
    features_of,
    random_adapter,
    random_prompts,
)
from services.worker.engine.config import EngineConfig
from services.worker.models.loader import LoadedModel

Popularity = Literal["resident_pool", "all_distinct"]
POPULARITIES: tuple[Popularity, ...] = ("resident_pool", "all_distinct")
_NUM_HOST_ADAPTERS = 4
"""Different contents; on the device every adapter has rows of its own, whatever they hold."""

_LOADING_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuBenchOrder:
    """What to measure."""

    shape: str = "llama-3.1-8b"
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    lora_rank: int = 8
    pool_rocs: int = 320
    """ROCs of the resident pool."""
    candidate_rocs: int = 64
    """Of a request."""
    active_rocs: int = 16
    """Of a token and layer."""
    prompt_len: int = 128
    new_tokens: int = 48
    num_rounds: int = 5
    seed: int = 0

    @property
    def num_candidates(self) -> int:
        """Adapters of a request."""
        return self.candidate_rocs // self.lora_rank


class _SharedAdapters:
    """A `ComponentSource` of any number of adapters that are copies of a few."""

    def __init__(self, features: Features, order: GpuBenchOrder) -> None:
        self._adapters = [
            random_adapter(features, seed=idx, lora_rank=order.lora_rank) for idx in range(_NUM_HOST_ADAPTERS)
        ]

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """One of the few, by the number that the id ends in."""
        assert basis is RocBasis.SVD, "plans of the benchmark name the basis of its adapters"
        return self._adapters[int(adapter_id.rpartition("-")[2]) % len(self._adapters)]


def run_gpu_bench(order: GpuBenchOrder, *, on_progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measure batch by batch; the report, ready for JSON.

    Raises:
        InvalidInput: `no_gpu`.
    """
    if order.device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInput(
            "There is no GPU here: torch sees no CUDA device.",
            code="no_gpu",
            remedy="Run this where there is one, or try the script itself with --device cpu --shape tiny.",
            place="device",
        )
    loaded = build_base(find_shape(order.shape), seed=order.seed, dtype=order.dtype, device=order.device)
    features = features_of(loaded.model, ALL_LINEARS)
    rows: list[dict[str, Any]] = []
    for popularity in POPULARITIES:
        for size in order.batch_sizes:
            title = f"{popularity}, batch {size}"
            on_progress(title, 0, 1)
            rows.append(_measure(loaded, features, order, popularity, size))
            on_progress(title, 1, 1)
    return {
        "device": torch.cuda.get_device_name() if order.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "order": {**asdict(order), "dtype": str(order.dtype)},
        "decode": rows,
        "kernels": kernel_shares(loaded, features, num_rows=order.pool_rocs, num_slots=order.candidate_rocs)
        if order.device.startswith("cuda")
        else None,
    }


def _measure(
    loaded: LoadedModel, features: Features, order: GpuBenchOrder, popularity: Popularity, size: int
) -> dict[str, Any]:
    plans = _plans(order, popularity, size)
    used = {budget.adapter_id for plan in plans for budget in plan.budgets}
    num_bytes = len(used) * adapter_bytes(features, lora_rank=order.lora_rank, itemsize=order.dtype.itemsize)
    config = EngineConfig(
        max_num_seqs=size,
        max_model_len=order.prompt_len + order.new_tokens,
        max_num_batched_tokens=max(2048, size * 2),
        roc_pool_bytes=num_bytes + num_bytes // 8,
        # Many gigabytes go to the device before the first step.
        component_timeout_seconds=_LOADING_SECONDS,
    )
    with closing(EngineDrive(loaded=twin_of(loaded), source=_SharedAdapters(features, order), config=config)) as drive:
        prompts = random_prompts(size, length=order.prompt_len, vocab_size=loaded.vocab_size, seed=order.seed)
        hilora = [BenchRequest(prompt=prompt, plan=plan) for prompt, plan in zip(prompts, plans, strict=True)]
        base = [BenchRequest(prompt=prompt, plan=RoutingPlan()) for prompt in prompts]
        # Residency and captured graphs first.
        drive.complete(hilora, new_tokens=2)
        turn = _turn_of(drive, order.new_tokens)
        seconds = take_turns({"base": turn(base), "hilora": turn(hilora)}, num_rounds=order.num_rounds)
    num_rows = len(used) * order.lora_rank
    reads = step_reads(
        loaded,
        features,
        batch_size=size,
        context_len=order.prompt_len + order.new_tokens // 2,
        num_candidate_rows=num_rows,
        num_active_rows=_expected_union(num_rows, order.active_rocs, size)
        if popularity == "resident_pool"
        else size * order.active_rocs,
    )
    return {
        "popularity": popularity,
        "batch_size": size,
        "num_rocs_on_device": num_rows,
        "share_kept": summarise(ratios(seconds["base"], seconds["hilora"])).as_json(),
        "roofline_share": round(reads.kept_share, 4),
        "step_ms_base": summarise([1e3 * value for value in seconds["base"]]).as_json(),
        "step_ms_hilora": summarise([1e3 * value for value in seconds["hilora"]]).as_json(),
    }


def _expected_union(num_rows: int, num_drawn: int, size: int) -> int:
    """Different rows among `size` draws of `num_drawn` out of `num_rows`."""
    return round(num_rows * (1.0 - (1.0 - min(1.0, num_drawn / num_rows)) ** size))


def _turn_of(drive: EngineDrive, new_tokens: int) -> Callable[[Sequence[BenchRequest]], Callable[[int], float]]:
    def of_requests(requests: Sequence[BenchRequest]) -> Callable[[int], float]:
        return lambda _: drive.complete(requests, new_tokens=new_tokens).decode_seconds

    return of_requests


def _plans(order: GpuBenchOrder, popularity: Popularity, size: int) -> list[RoutingPlan]:
    rng = np.random.default_rng(order.seed)
    count = order.num_candidates
    plans: list[RoutingPlan] = []
    for row in range(size):
        if popularity == "resident_pool":
            chosen = rng.choice(order.pool_rocs // order.lora_rank, size=count, replace=False)
        else:
            chosen = np.arange(row * count, (row + 1) * count)
        plans.append(_plan([adapter_id(int(idx)) for idx in chosen], order))
    return plans


def _plan(names: Sequence[str], order: GpuBenchOrder) -> RoutingPlan:
    budgets = tuple(
        RocBudget(
            adapter_id=name,
            adapter_name=name,
            lora_rank=order.lora_rank,
            num_rocs=order.active_rocs // len(names),
            weight=1.0 / len(names),
        )
        for name in names
    )
    return RoutingPlan(budgets=budgets, gate=GateParameters(scope=GateScope.GLOBAL, basis=RocBasis.SVD))
