"""Does the right adapter come first? Scorers of the sequence level side by side, on real task texts, without any LLM.

Every scorer gets a temperature from held-out samples, fitted without them; the default is the product's own fitted pool
and is asked as a request asks it.

Shapes: N queries or held-out samples, L adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.adapter_review import FEW_SAMPLES, are_uneven
from hilora.calibration import softmax
from hilora.character_grams import gram_ids
from hilora.covariance import FloatArray
from hilora.fitted_pool import AdapterProfile, FittedPool
from hilora.gaussian_index import NOBODY, DenseGaussianIndex
from hilora.held_out_samples import NUM_FOLDS
from hilora.score_stack import StackWeights, fit_stack_weights
from hilora.stacked_scores import SHORTLIST
from hilora_lab.bench.routing_data import RoutingData
from hilora_lab.bench.routing_metrics import RankedQueries, interval_over_tasks, without_own
from hilora_lab.bench.routing_scorers import CountedTexts, SampledPool, ScoreTable, fit_any_temperature, score_texts

DEFAULT_SCORER = "stacked"
"""What the product does."""

_MAX_HELD_OUT = 2048

OnProgress = Callable[[str, int, int], None]
"""Told what is done: title, steps done, all steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """A scorer's probabilities of the queries."""

    temperature: float
    posterior_NL: FloatArray
    without_own_NL: FloatArray


def run_routing_bench(data: RoutingData, *, on_progress: OnProgress) -> dict[str, Any]:
    """Score every query with every scorer.

    Returns:
        The report: `scorers` by name, each with the keys of `RankedQueries.summary`, its `temperature`, and the 95 %
        interval `top1_ci` over tasks; `default` and `gain`, what the default's top-1 has over the Gaussian alone;
        `product`, what its wording weighs and a query takes.
    """
    started = time.perf_counter()
    num_steps = NUM_FOLDS + 2
    samples = CountedTexts.of(data.samples)
    queries = CountedTexts.of(data.queries)
    pool = SampledPool(samples=samples, adapter_M=data.sample_task_N, num_adapters=len(data.tasks))
    on_progress("scorers", 1, num_steps)
    asked = score_texts(pool, queries)
    held_out, held_out_idx = _held_out(data, samples, lambda done: on_progress("scorers", 1 + done, num_steps))
    scored = {name: _scored(scores, held_out[name], held_out_idx, data) for name, scores in asked.items()}
    scored["stacked_lexical"] = _stacked_lexical(asked, held_out, held_out_idx, data)
    scored[DEFAULT_SCORER], product = _product(data, pool)
    on_progress("scorers", num_steps, num_steps)
    names = sorted({task.cluster for task in data.tasks})
    cluster_L = np.array([names.index(task.cluster) for task in data.tasks], dtype=np.intp)
    scorers: dict[str, dict[str, Any]] = {}
    is_first: dict[str, NDArray[np.bool_]] = {}
    for name, of_scorer in scored.items():
        ranked = RankedQueries(
            posterior_NL=of_scorer.posterior_NL,
            without_own_NL=of_scorer.without_own_NL,
            true_idx_N=data.query_task_N,
            cluster_L=cluster_L,
        )
        is_first[name] = ranked.ranks < 1
        scorers[name] = {
            **ranked.summary(),
            "temperature": round(of_scorer.temperature, 4),
            "top1_ci": _interval(is_first[name].astype(np.float64), data),
        }
    gain_N = is_first[DEFAULT_SCORER].astype(np.float64) - is_first["pooled_eb"]
    counts = np.bincount(data.sample_task_N)
    return {
        "num_adapters": len(data.tasks),
        "num_queries": len(data.queries),
        "num_samples": [int(counts.min()), int(counts.max())],
        "default": DEFAULT_SCORER,
        "gain": {"over": "pooled_eb", "top1": round(100.0 * float(gain_N.mean()), 3), "ci": _interval(gain_N, data)},
        "product": product,
        "scorers": scorers,
        "warnings": sample_warnings(counts),
        "seconds": round(time.perf_counter() - started, 1),
    }


def sample_warnings(counts_L: NDArray[np.intp]) -> list[str]:
    """What to think of before the numbers of a pool with so many samples are believed."""
    warnings: list[str] = []
    few = int((counts_L < FEW_SAMPLES).sum())
    if few:
        warnings.append(f"{few} adapters have fewer than {FEW_SAMPLES} samples: little tells them apart.")
    if are_uneven(counts_L.tolist()):
        warnings.append(
            f"Adapters have {counts_L.min()} to {counts_L.max()} samples: those with more may be preferred."
        )
    return warnings


def _held_out(
    data: RoutingData, samples: CountedTexts, on_fold: Callable[[int], None]
) -> tuple[ScoreTable, NDArray[np.intp]]:
    """Scores of samples under pools without them, and whose they are."""
    ordinal_N = data.ordinals
    may_leave_N = np.bincount(data.sample_task_N)[data.sample_task_N] > 1
    tables: list[ScoreTable] = []
    whose: list[NDArray[np.intp]] = []
    for fold in range(NUM_FOLDS):
        is_left_out_N = (ordinal_N % NUM_FOLDS == fold) & may_leave_N
        rows = np.flatnonzero(is_left_out_N)
        rows = rows[:: max(1, -(-len(rows) * NUM_FOLDS // _MAX_HELD_OUT))]
        if len(rows):
            kept = np.flatnonzero(~is_left_out_N)
            pool = SampledPool(
                samples=samples.take(kept), adapter_M=data.sample_task_N[kept], num_adapters=len(data.tasks)
            )
            tables.append(score_texts(pool, samples.take(rows)))
            whose.append(data.sample_task_N[rows])
        on_fold(fold + 1)
    if not tables:
        return {}, np.zeros(0, dtype=np.intp)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, np.concatenate(whose)


def _scored(
    scores_NL: NDArray[np.float32], held_out_NL: NDArray[np.float32], held_out_idx: NDArray[np.intp], data: RoutingData
) -> _Scored:
    temperature = fit_any_temperature(held_out_NL, held_out_idx)
    return _of_logits(scores_NL.astype(np.float64) / temperature, temperature, data)


def _stacked_lexical(
    asked: ScoreTable, held_out: ScoreTable, held_out_idx: NDArray[np.intp], data: RoutingData
) -> _Scored:
    """The Gaussian and the TF-IDF cosine, stacked by the rule of the default."""
    weights = fit_stack_weights(held_out["pooled_eb"], held_out["lexical"], held_out_idx)
    logits_NL = weights.combined(asked["pooled_eb"].astype(np.float64), asked["lexical"].astype(np.float64))
    return _of_logits(logits_NL, weights.temperature, data)


def _of_logits(logits_NL: FloatArray, temperature: float, data: RoutingData) -> _Scored:
    posterior_NL = softmax(logits_NL)
    return _Scored(
        temperature=temperature,
        posterior_NL=posterior_NL,
        without_own_NL=without_own(posterior_NL, data.query_task_N),
    )


def _product(data: RoutingData, whole: SampledPool) -> tuple[_Scored, dict[str, float]]:
    """The fitted pool of the product, query by query, and once more with the right adapter excluded; and what a query
    takes beyond its embedding."""
    pool = FittedPool.fit(
        [
            AdapterProfile(
                # Places in the pool follow the ids.
                adapter_id=f"{place:06}",
                adapter_name=task.name,
                lora_rank=1,
                samples_ME=whole.blocks[place],
                grams=whole.grams_of(place),
            )
            for place, task in enumerate(data.tasks)
        ],
        build_index=DenseGaussianIndex,
    )
    milliseconds: list[float] = []
    shape = (len(data.queries), len(data.tasks))
    posterior_NL, without_own_NL = np.zeros(shape), np.zeros(shape)
    for row, (z_E, text) in enumerate(zip(data.queries.embeddings_NE, data.queries.texts, strict=True)):
        own = data.query_task_N[row : row + 1]
        for table, excluded in ((posterior_NL, NOBODY), (without_own_NL, own)):
            started = time.perf_counter()
            found = pool.score_nearest(
                pool.checked(z_E), num_results=SHORTLIST, excluded=excluded, grams=gram_ids(text)
            )
            milliseconds.append((time.perf_counter() - started) * 1e3)
            table[row, found.idx_C] = found.posterior_C
    weights = unknown = StackWeights(temperature=pool.model.temperature, lexical_weight=0.0)
    if pool.stack is not None:
        weights, unknown = pool.stack.weights, pool.stack.unknown_weights
    scored = _Scored(temperature=weights.temperature, posterior_NL=posterior_NL, without_own_NL=without_own_NL)
    return scored, {
        "lexical_weight": round(weights.lexical_weight, 4),
        "unknown_temperature": round(unknown.temperature, 4),
        "unknown_lexical_weight": round(unknown.lexical_weight, 4),
        "milliseconds_p50": round(float(np.quantile(milliseconds, 0.5)), 4),
        "milliseconds_p99": round(float(np.quantile(milliseconds, 0.99)), 4),
    }


def _interval(values_N: FloatArray, data: RoutingData) -> list[float]:
    return [round(100.0 * bound, 3) for bound in interval_over_tasks(values_N, data.query_task_N)]
