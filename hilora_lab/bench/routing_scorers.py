"""Every way to score a pool that is compared, from what others do to the parts of the default.

Shapes: M samples, N texts, L adapters, E embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.calibration import PRIOR_TEMPERATURE, cross_entropy
from hilora.character_grams import SampleGrams, gram_ids
from hilora.covariance import FloatArray
from hilora.empirical_bayes import fit_statistics
from hilora.gaussian import AdapterGaussian, CovarianceFamily, fit_gaussian
from hilora.lexical_pool import LexicalPool
from hilora.pool_statistics import PoolStatistics
from hilora_lab.bench.routing_data import Texts
from hilora_lab.bench.routing_lexical import TfIdfPool, count_ngrams

_RIDGE = 1e-6
"""Added to every adapter's own covariance: the paper names no regulariser, and 20 samples need one."""
_NEAREST_SHARE = 0.5
_HYBRIDS = {"hybrid_010": 0.1, "hybrid_025": 0.25}
_LM_HYBRIDS = {"hybrid_lm_025": 0.25, "hybrid_lm_050": 0.5}

ScoreTable = dict[str, NDArray[np.float32]]
"""Scores `[N, L]` by scorer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CountedTexts:
    """Texts with what the lexical scorers need of them, computed once."""

    texts: Texts
    ngrams_NG: Any
    grams: tuple[NDArray[np.uint16], ...]

    @classmethod
    def of(cls, texts: Texts) -> CountedTexts:
        """Count."""
        return cls(
            texts=texts, ngrams_NG=count_ngrams(texts.texts), grams=tuple(gram_ids(text) for text in texts.texts)
        )

    def take(self, rows: NDArray[np.intp]) -> CountedTexts:
        """Those of some rows."""
        return CountedTexts(
            texts=self.texts.take(rows),
            ngrams_NG=self.ngrams_NG[rows],
            grams=tuple(self.grams[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledPool:
    """The samples of a pool, adapter by adapter, at least one each."""

    samples: CountedTexts
    adapter_M: NDArray[np.intp]
    num_adapters: int

    @cached_property
    def _bounds(self) -> NDArray[np.intp]:
        return np.searchsorted(self.adapter_M, np.arange(self.num_adapters + 1))

    @cached_property
    def blocks(self) -> list[NDArray[np.float32]]:
        """One `[m, E]` array of embeddings per adapter."""
        return np.split(self.samples.texts.embeddings_NE, self._bounds[1:-1])

    def grams_of(self, place: int) -> SampleGrams:
        """How one adapter's samples are written."""
        own = self.samples.grams[self._bounds[place] : self._bounds[place + 1]]
        return SampleGrams(ids_N=np.concatenate(own), lengths_M=np.array([len(ids) for ids in own], dtype=np.uint32))


def score_texts(pool: SampledPool, asked: CountedTexts) -> ScoreTable:
    """Every scorer's scores of some texts under a pool that is fitted to its samples alone."""
    z_NE = asked.texts.embeddings_NE.astype(np.float64)
    statistics = PoolStatistics.of(pool.blocks)
    tf_idf = TfIdfPool.fit(pool.samples.ngrams_NG, pool.adapter_M, pool.num_adapters)
    lexical, nearest = tf_idf.summed_cosine(asked.ngrams_NG), tf_idf.nearest_sample(asked.ngrams_NG)
    pooled = fit_statistics(statistics, temperature=PRIOR_TEMPERATURE).log_likelihood(z_NE)
    unit_means_LE = statistics.means_LE / np.linalg.norm(statistics.means_LE, axis=1, keepdims=True)
    lm = lexical + _NEAREST_SHARE * nearest
    table: dict[str, FloatArray] = {
        "cosine": z_NE @ unit_means_LE.T,
        "full_covariance": _own_gaussians([_literal(block) for block in pool.blocks], z_NE),
        "diagonal": _own_gaussians(_fitted(pool.blocks, CovarianceFamily.DIAGONAL), z_NE),
        "ledoit_wolf": _own_gaussians(_fitted(pool.blocks, CovarianceFamily.FULL_LEDOIT_WOLF), z_NE),
        "pooled_eb": pooled,
        "lexical": lexical,
        "nearest_sample": nearest,
        "lm": lm,
        "wording": _wording(pool, asked),
    }
    for name, weight in _HYBRIDS.items():
        table[name] = _standard(pooled) + weight * _standard(lexical)
    for name, weight in _LM_HYBRIDS.items():
        table[name] = _standard(pooled) + weight * _standard(lm)
    return {name: scores.astype(np.float32) for name, scores in table.items()}


def fit_any_temperature(scores_NL: NDArray[np.floating], true_idx_N: NDArray[np.intp]) -> float:
    """The temperature that explains held-out texts best, of scores of any unit and without a prior."""
    spread = float(scores_NL.std(axis=1).mean()) or 1.0
    scaled = np.asarray(scores_NL, dtype=np.float64) / spread
    grid = np.linspace(np.log(1e-3), np.log(10.0), 25)

    def loss(log_temperature: float) -> float:
        return cross_entropy(scaled, true_idx_N, temperature=float(np.exp(log_temperature)))

    best = int(np.argmin([loss(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    while high - low > 0.01:
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return spread * float(np.exp(0.5 * (low + high)))


def _wording(pool: SampledPool, asked: CountedTexts) -> FloatArray:
    fitted = LexicalPool.fit([pool.grams_of(place).counts() for place in range(pool.num_adapters)])
    everybody = np.arange(pool.num_adapters)
    return np.stack([fitted.scores(ids, everybody) for ids in asked.grams])


def _fitted(blocks: list[NDArray[np.float32]], family: CovarianceFamily) -> list[AdapterGaussian]:
    return [fit_gaussian(block, family=family) for block in blocks]


def _own_gaussians(gaussians: list[AdapterGaussian], z_NE: FloatArray) -> FloatArray:
    return np.stack([gaussian.log_likelihoods(z_NE) for gaussian in gaussians], axis=1)


def _literal(block: NDArray[np.float32]) -> AdapterGaussian:
    """The unbiased sample covariance plus a ridge."""
    samples_ME = block.astype(np.float64)
    mean_E = samples_ME.mean(axis=0)
    _, singular_values, directions_KE = np.linalg.svd(samples_ME - mean_E, full_matrices=False)
    return AdapterGaussian(
        mean_E=mean_E,
        base_variance_E=np.full(len(mean_E), _RIDGE),
        directions_KE=directions_KE,
        excess_K=singular_values**2 / max(len(samples_ME) - 1, 1),
    )


def _standard(scores_NL: FloatArray) -> FloatArray:
    """Mean 0 and variance 1 over the adapters of each text."""
    spread_N1 = scores_NL.std(axis=1, keepdims=True)
    return (scores_NL - scores_NL.mean(axis=1, keepdims=True)) / np.where(spread_N1 > 0.0, spread_N1, 1.0)
