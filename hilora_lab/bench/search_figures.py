"""How long the search of a large pool takes, for each way to search it.

The Gaussians are those of synthetic tasks: a fit of some thousand, which places as many more as are wanted.

Shapes: L adapters, N texts, E embedding dimension.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from hilora.empirical_bayes import PooledEmpiricalBayes, fit_pooled_eb
from hilora.gaussian_index import DenseGaussianIndex, GaussianIndex
from hilora_lab.bench.synthetic_pool import EMBEDDING_DIM, NUM_SAMPLES
from services.router.infra.index_kinds import build_index
from services.router.pool_index import IndexKind

_NUM_FITTED = 2000
_NUM_RESULTS = 8
_FAMILY = 20
_NUM_ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFigure:
    """One way to search one pool."""

    kind: str
    num_adapters: int
    search_ms: float
    """Median over single texts, top eight and the sum over the pool included, in the fastest of some rounds."""
    search_cpu_ms: float
    """The same in processor time of the thread: what it takes when nobody else is there."""
    slowest_round_ms: float
    """Median of the slowest round: how far the machine's other users were felt."""
    top_8_agreement: float
    """Share of the eight best that it finds, against all scores in float64."""
    build_seconds: float


def measure_search(
    num_adapters: int, *, kinds: tuple[IndexKind, ...], num_texts: int = 200, seed: int = 0
) -> list[SearchFigure]:
    """Search a synthetic pool of a size in several ways, one thread, one text at a time, as the router does."""
    faiss.omp_set_num_threads(1)
    with threadpool_limits(limits=1, user_api="blas"):
        return _measured(num_adapters, kinds=kinds, num_texts=num_texts, seed=seed)


def _measured(num_adapters: int, *, kinds: tuple[IndexKind, ...], num_texts: int, seed: int) -> list[SearchFigure]:
    model = synthetic_pool_model(num_adapters, seed=seed)
    texts = _texts_of(model, num_texts=num_texts, seed=seed + 1)
    dense = DenseGaussianIndex(model.gaussians)
    num_checked = min(num_texts, max(20, 2_000_000 // num_adapters))
    truth = [
        dense.search(y_K, 0.0, num_results=_NUM_RESULTS, temperature=model.temperature).idx_C
        for y_K in texts[:num_checked]
    ]
    figures: list[SearchFigure] = []
    for kind in kinds:
        started = time.perf_counter()
        index = dense if kind is IndexKind.DENSE else build_index(model.gaussians, kind)
        build_seconds = time.perf_counter() - started
        figures.append(
            replace(
                _timed(index, texts, truth, temperature=model.temperature, kind=kind),
                build_seconds=round(build_seconds, 3),
            )
        )
    return figures


def synthetic_pool_model(num_adapters: int, *, seed: int) -> PooledEmpiricalBayes:
    """A model whose Gaussians are those of so many synthetic tasks of twenty texts."""
    rng = np.random.default_rng(seed)
    axes_E = ((1.0 + np.arange(EMBEDDING_DIM)) ** -0.5).astype(np.float32)
    families = rng.standard_normal((max(1, num_adapters // _FAMILY), EMBEDDING_DIM), dtype=np.float32)

    def centers(num: int) -> np.ndarray:
        own = rng.standard_normal((num, EMBEDDING_DIM), dtype=np.float32)
        return (0.7 * families[rng.integers(len(families), size=num)] + 0.5 * own) * axes_E

    blocks: list[np.ndarray] = []
    for center_E in centers(min(_NUM_FITTED, num_adapters)):
        block = center_E + rng.standard_normal((NUM_SAMPLES, EMBEDDING_DIM), dtype=np.float32) * axes_E
        blocks.append(block / np.linalg.norm(block, axis=1, keepdims=True))
    model = fit_pooled_eb(blocks)
    lengths = np.mean([np.linalg.norm(block.mean(axis=0)) for block in blocks])
    means_LE = centers(num_adapters)
    means_LE += rng.standard_normal(means_LE.shape, dtype=np.float32) * axes_E / NUM_SAMPLES**0.5
    means_LE *= lengths / np.linalg.norm(means_LE, axis=1, keepdims=True)
    gaussians = model.predict(means_LE, np.full(num_adapters, NUM_SAMPLES))
    return replace(model, gaussians=gaussians)


def _texts_of(model: PooledEmpiricalBayes, *, num_texts: int, seed: int) -> np.ndarray:
    """Coordinates of new texts of random adapters, drawn as the model predicts them."""
    rng = np.random.default_rng(seed)
    own = rng.integers(model.gaussians.num_adapters, size=num_texts)
    means_NK = model.gaussians.means_LK[own]
    deviations_NK = np.sqrt(model.gaussians.variances_GK[model.gaussians.group_L[own]])
    return means_NK + deviations_NK * rng.standard_normal(means_NK.shape)


def _timed(
    index: GaussianIndex, texts: np.ndarray, truth: list[np.ndarray], *, temperature: float, kind: IndexKind
) -> SearchFigure:
    for y_K in texts[:20]:
        index.search(y_K, 0.0, num_results=_NUM_RESULTS, temperature=temperature)
    agreement = [
        float(np.isin(expected, index.search(y_K, 0.0, num_results=_NUM_RESULTS, temperature=temperature).idx_C).mean())
        for y_K, expected in zip(texts, truth, strict=False)
    ]
    rounds: list[tuple[float, float]] = []
    for _ in range(_NUM_ROUNDS):
        wall: list[float] = []
        cpu: list[float] = []
        for y_K in texts:
            started, cpu_started = time.perf_counter(), time.thread_time()
            index.search(y_K, 0.0, num_results=_NUM_RESULTS, temperature=temperature)
            cpu.append(time.thread_time() - cpu_started)
            wall.append(time.perf_counter() - started)
        rounds.append((float(np.median(wall)), float(np.median(cpu))))
    # Whoever else uses the machine's memory can only make a round slower.
    search_seconds, search_cpu_seconds = min(rounds)
    return SearchFigure(
        kind=kind.value,
        num_adapters=index.num_adapters,
        search_ms=round(search_seconds * 1e3, 4),
        search_cpu_ms=round(search_cpu_seconds * 1e3, 4),
        top_8_agreement=round(float(np.mean(agreement)), 5),
        slowest_round_ms=round(max(rounds)[0] * 1e3, 4),
        build_seconds=0.0,
    )
