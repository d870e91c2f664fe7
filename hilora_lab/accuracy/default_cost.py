"""What the default costs: its decision beyond the encoder, and a token beside one pinned adapter's.

    routing.decide_ms         a decision among `routing.num_adapters` adapters by the clock, median and 99th percentile
    routing.decide_cpu_ms     the same in processor time, which other processes lengthen less
    routing.are_text_kernels_compiled   without them, decisions take longer
    routing.gaussian_ms       the same decisions by the embedding alone; gaussian_cpu_ms as above
    per_token.bN.SETTING      the default's time per token over a pinned adapter's, N requests at once, round by round:
                              `decode` of the middle step in which all decode, `whole` with prompts, `cpu` as `whole`
                              in processor time
    per_token.bN.three        plans of three equally likely candidates: the most that the default mixes, made by hand

`SETTING` is `id` (the own adapter is in the pool) or `ood` (it was never registered). A decision is all that a router
does between embedding and plan: the rules of the request, the text's grams, search, posterior, budgets, policy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.adapter import adapter_id_of
from hilora.budget_allocation import largest_remainder_counts, total_budget
from hilora.character_grams import SampleGrams
from hilora.routing_explanation import explicit_decision
from hilora.routing_plan import GateParameters, RocBudget, RoutingPlan
from hilora.routing_settings import RoutingSettings, ScoreRule
from hilora.sequence_routing import AdapterProfile
from hilora.text_kernels import are_text_kernels_compiled
from hilora_lab.accuracy.accuracy_bench import REVISION, OnProgress, profile_of, tokenize_line
from hilora_lab.accuracy.engine_scorer import FactorSource
from hilora_lab.accuracy.planner import DEFAULT_STRATEGY, Planner
from hilora_lab.bench.engine_drive import BenchRequest, BlockTimes, EngineDrive
from hilora_lab.bench.pairing import ratios, summarise, take_turns
from hilora_lab.bench.router_feed import synthetic_samples
from hilora_lab.bench.router_texts import task_name, task_text
from hilora_lab.evaluation.gated_model import read_adapter_folder
from hilora_lab.evaluation.offline import Encodes
from hilora_lab.testbed.folder import TaskLine, Testbed
from services.worker.engine.config import EngineConfig
from services.worker.models.loader import load_model

GOALS: Mapping[str, float] = {"decide_ms": 1.0, "per_token": 1.3}
"""What no figure should exceed."""

_NUM_SAMPLES = 20
_NUM_WARM_UP = 20
_NUM_CANDIDATES = 3
_LORA_RANK = 16
_POOL_BYTES = 1 << 30
_STEP_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class CostOrder:
    """How much is measured."""

    num_adapters: int = 1000
    """Of the pool in which decisions are timed."""
    num_texts: int = 300
    batches: tuple[int, ...] = (1, 8, 32)
    new_tokens: int = 32
    num_rounds: int = 31
    seed: int = 0


def measure_cost(testbed: Testbed, encoder: Encodes, order: CostOrder, on_progress: OnProgress) -> dict[str, Any]:
    """Both measurements, and whether they are within the goals."""
    routing = measure_routing(encoder, order, on_progress)
    per_token = measure_per_token(testbed, encoder, order, on_progress)
    decode = [found["decode"]["median"] for batch in per_token.values() for found in batch.values()]
    return {
        "routing": routing,
        "per_token": per_token,
        "goals": dict(GOALS),
        "is_met": {
            "decide_ms": routing["decide_ms"]["p50"] <= GOALS["decide_ms"],
            "per_token": max(decode) <= GOALS["per_token"],
        },
    }


def measure_routing(encoder: Encodes, order: CostOrder, on_progress: OnProgress) -> dict[str, Any]:
    """Decisions one after another among adapters of made-up tasks; the texts are ones that no adapter has shown.

    Each adapter's embeddings lie around that of a real text of its task; its grams are those of its texts.
    """
    tasks = range(order.num_adapters)
    on_progress("pool", 0, 1)
    centers_LE = encoder.encode([task_text(task, 0) for task in tasks])
    profiles: dict[str, AdapterProfile] = {}
    for task, samples_ME in enumerate(synthetic_samples(centers_LE, seed=order.seed)):
        name = task_name(task)
        profiles[name] = AdapterProfile(
            adapter_id=adapter_id_of(name, REVISION),
            adapter_name=name,
            lora_rank=_LORA_RANK,
            samples_ME=samples_ME,
            grams=SampleGrams.of([task_text(task, number) for number in range(_NUM_SAMPLES)]),
        )
    planner = Planner(profiles, seed=order.seed)
    planner.router()
    own = np.random.default_rng(order.seed).integers(order.num_adapters, size=order.num_texts + _NUM_WARM_UP)
    texts = [task_text(task, _NUM_SAMPLES + at) for at, task in enumerate(own.tolist())]
    texts_NE = encoder.encode(texts)
    on_progress("pool", 1, 1)
    stacked: list[tuple[float, float]] = []
    gaussian: list[tuple[float, float]] = []
    for text, z_E in zip(texts, texts_NE, strict=True):
        for found, changes in ((stacked, {}), (gaussian, {"score_rule": ScoreRule.GAUSSIAN})):
            started, started_cpu = time.perf_counter(), time.process_time()
            planner.decide(text, z_E, DEFAULT_STRATEGY, changes=changes)
            found.append((time.perf_counter() - started, time.process_time() - started_cpu))
        on_progress("decide", len(stacked), len(texts))
    stacked_NS, gaussian_NS = (1e3 * np.array(found[_NUM_WARM_UP:]) for found in (stacked, gaussian))
    return {
        "num_adapters": order.num_adapters,
        "num_texts": order.num_texts,
        "are_text_kernels_compiled": are_text_kernels_compiled(),
        "decide_ms": _percentiles(stacked_NS[:, 0]),
        "decide_cpu_ms": _percentiles(stacked_NS[:, 1]),
        "gaussian_ms": _percentiles(gaussian_NS[:, 0]),
        "gaussian_cpu_ms": _percentiles(gaussian_NS[:, 1]),
    }


def measure_per_token(
    testbed: Testbed, encoder: Encodes, order: CostOrder, on_progress: OnProgress
) -> dict[str, dict[str, Any]]:
    """The default's plans against one pinned adapter, in turns on one engine."""
    adapters = {name: read_adapter_folder(testbed.adapter_folder(name)) for name in testbed.adapter_names}
    planner = Planner(
        {
            name: profile_of(name, adapter, [line.prompt for line in testbed.lines_of(name, "fit")], encoder)
            for name, adapter in adapters.items()
        },
        seed=order.seed,
    )
    # One line of each task in turn, so that a batch has as many adapters as it can.
    by_task = [testbed.lines_of(name, "test") for name in testbed.adapter_names]
    in_turn = (line for lines in itertools.zip_longest(*by_task) for line in lines if line is not None)
    lines = tuple(itertools.islice(in_turn, max(order.batches)))
    embeddings_NE = encoder.encode([line.prompt for line in lines])

    def decided(*, is_ood: bool) -> list[RoutingPlan]:
        return [
            planner.decide(line.prompt, z_E, DEFAULT_STRATEGY, without=line.task if is_ood else None).plan
            for line, z_E in zip(lines, embeddings_NE, strict=True)
        ]

    ranks = {name: adapter.lora_rank for name, adapter in adapters.items()}

    plans = {
        "pinned": [_pinned(line, ranks[line.task]) for line in lines],
        "id": decided(is_ood=False),
        "ood": decided(is_ood=True),
        "three": [_three(line, ranks) for line in lines],
    }
    loaded = load_model(str(testbed.base_folder), device="cpu")
    prompts = [tokenize_line(loaded.tokenizer, line).prompt_ids for line in lines]
    config = EngineConfig(
        max_num_seqs=max(order.batches),
        max_model_len=max(map(len, prompts)) + order.new_tokens,
        max_num_batched_tokens=_STEP_TOKENS,
        roc_pool_bytes=_POOL_BYTES,
    )
    source = FactorSource({adapter_id_of(name, REVISION): adapter for name, adapter in adapters.items()})
    with closing(EngineDrive(loaded=loaded, source=source, config=config)) as drive:
        return {
            f"b{size}": _compared(
                drive,
                prompts[:size],
                plans,
                order,
                lambda done, at=size: on_progress(f"batch {at}", done + 1, order.num_rounds),
            )
            for size in order.batches
        }


def _compared(
    drive: EngineDrive,
    prompts: Sequence[tuple[int, ...]],
    plans: Mapping[str, Sequence[RoutingPlan]],
    order: CostOrder,
    on_round: Callable[[int], None],
) -> dict[str, Any]:
    def turn(name: str) -> Callable[[int], tuple[BlockTimes, float]]:
        requests = [BenchRequest(prompt=prompt, plan=plan) for prompt, plan in zip(prompts, plans[name], strict=False)]

        def timed(_: int) -> tuple[BlockTimes, float]:
            started = time.process_time()
            return drive.complete(requests, new_tokens=order.new_tokens), time.process_time() - started

        return timed

    times: Mapping[str, Sequence[tuple[BlockTimes, float]]] = take_turns(
        {name: turn(name) for name in plans}, num_rounds=order.num_rounds, num_warmups=2, on_round=on_round
    )
    decode = {name: [one.decode_seconds for one, _ in found] for name, found in times.items()}
    whole = {name: [one.total_seconds / one.num_tokens for one, _ in found] for name, found in times.items()}
    cpu = {name: [seconds / one.num_tokens for one, seconds in found] for name, found in times.items()}
    return {
        name: {
            "decode": summarise(ratios(decode[name], decode["pinned"])).as_json(),
            "whole": summarise(ratios(whole[name], whole["pinned"])).as_json(),
            "cpu": summarise(ratios(cpu[name], cpu["pinned"])).as_json(),
            "decode_step_ms": summarise([1e3 * value for value in decode[name]]).as_json(),
            "pinned_decode_step_ms": summarise([1e3 * value for value in decode["pinned"]]).as_json(),
            "adapters": float(np.mean([len(plan.budgets) for plan in plans[name][: len(prompts)]])),
            "rocs": float(np.mean([plan.num_rocs for plan in plans[name][: len(prompts)]])),
        }
        for name in plans
        if name != "pinned"
    }


def _pinned(line: TaskLine, lora_rank: int) -> RoutingPlan:
    return explicit_decision(
        adapter_id=adapter_id_of(line.task, REVISION),
        adapter_name=line.task,
        lora_rank=lora_rank,
        catalog_generation=0,
    ).plan


def _three(line: TaskLine, ranks: Mapping[str, int]) -> RoutingPlan:
    """The own adapter and the two after it, as the default grants three that are equally likely."""
    names = list(ranks)
    start = names.index(line.task)
    chosen = [names[(start + offset) % len(names)] for offset in range(_NUM_CANDIDATES)]
    settings = RoutingSettings()
    chosen_ranks = [ranks[name] for name in chosen]
    budget = total_budget(chosen_ranks, gamma=settings.gamma, confidence_following=settings.confidence_following)
    counts = largest_remainder_counts(chosen_ranks, shares_C=np.ones(len(chosen)), budget=budget)
    return RoutingPlan(
        budgets=tuple(
            RocBudget(
                adapter_id=adapter_id_of(name, REVISION),
                adapter_name=name,
                lora_rank=ranks[name],
                num_rocs=count,
                weight=1.0 / len(chosen),
            )
            for name, count in zip(chosen, counts, strict=True)
        ),
        gate=GateParameters(score=settings.roc_score, scope=settings.gate_scope, basis=settings.basis),
    )


def _percentiles(milliseconds_N: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(milliseconds_N, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
