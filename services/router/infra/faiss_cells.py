"""The cells of a k-means around a pool's means: the adapters near a text without looking at the others.

Under one shared variance the best score is the nearest mean, so the means are cut into cells by plain distance, in
units of the average variance. That is a shortlist only: variances of their own would break a search by distance, and
what it finds is scored exactly by its caller.

Shapes: L adapters, K coordinates, N texts, C found ones.
"""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.gaussian_index import highest
from hilora.pooled_gaussian import WhitenedGaussians

_CELLS_PER_ROOT = 4.0
"""Cells per square root of the number of adapters."""
_TRAINING_PER_CELL = 24
_KMEANS_ROUNDS = 8
_NUM_PROBES = 48
_NUM_TEXTS = 256
_NUM_COMPARED = 10
_BATCH = 8192

_SearchParametersIVF: Any = faiss.SearchParametersIVF
"""Takes its fields by keyword, which the generated types do not say."""


class FaissCells:
    """A float16 inverted file over the means.

    Args:
        gaussians: the pool, with at least one coordinate.
        seed: of the k-means; equal pools get equal cells.
    """

    def __init__(self, gaussians: WhitenedGaussians, *, seed: int) -> None:
        weights_G = np.bincount(gaussians.group_L, minlength=len(gaussians.variances_GK))
        average_K = weights_G @ gaussians.variances_GK / weights_G.sum()
        self._scale_K = average_K**-0.5
        num_coordinates = len(average_K)
        num_cells = max(1, round(_CELLS_PER_ROOT * math.sqrt(gaussians.num_adapters)))
        self._quantizer: Any = faiss.IndexFlatL2(num_coordinates)
        self._index: Any = faiss.IndexIVFScalarQuantizer(
            self._quantizer, num_coordinates, num_cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2
        )
        self._index.cp.seed = seed
        self._index.cp.niter = _KMEANS_ROUNDS
        self._index.cp.min_points_per_centroid = 1
        num_training = min(gaussians.num_adapters, num_cells * _TRAINING_PER_CELL)
        chosen = np.random.default_rng(seed).choice(gaussians.num_adapters, size=num_training, replace=False)
        self._index.train(self._scaled(gaussians.means_LK[chosen]))
        for start in range(0, gaussians.num_adapters, _BATCH):
            self._index.add(self._scaled(gaussians.means_LK[start : start + _BATCH]))

    def nearest(self, y_K: FloatArray, num_results: int, *, selector: Any, in_all_cells: bool) -> NDArray[np.intp]:
        """Places of the adapters with the nearest means, as far as they were looked at.

        Args:
            y_K: a text's coordinates.
            num_results: most places.
            selector: a `faiss.IDSelector` of those that may be found; None for all.
            in_all_cells: look at every adapter.
        """
        num_probes = self._index.nlist if in_all_cells else min(_NUM_PROBES, self._index.nlist)
        parameters = _SearchParametersIVF(nprobe=num_probes, sel=selector)
        _, places = self._index.search(self._scaled(y_K[None]), num_results, params=parameters)
        return places[0][places[0] >= 0].astype(np.intp)

    def measured_recall(self, gaussians: WhitenedGaussians, *, shortlist: int, seed: int) -> float:
        """Share of the ten best adapters that a shortlist holds, over texts drawn from the fitted model.

        Half of the texts belong to adapters of the pool, as the model predicts new texts of theirs; half lie between
        two adapters, where a wrong choice of cells costs most. No sample text is used: the means were made of them.
        """
        rng = np.random.default_rng(seed)
        first, second = rng.integers(gaussians.num_adapters, size=(2, _NUM_TEXTS))
        share = np.where(np.arange(_NUM_TEXTS) % 2, 0.5, 0.0)[:, None]
        centers = (1.0 - share) * gaussians.means_LK[first] + share * gaussians.means_LK[second]
        deviations = np.sqrt(gaussians.variances_GK[gaussians.group_L[first]])
        texts_NK = centers + deviations * rng.standard_normal(centers.shape)
        num_compared = min(_NUM_COMPARED, gaussians.num_adapters)
        num_found = 0
        for y_K, scores_L in zip(texts_NK, _all_scores(gaussians, texts_NK), strict=True):
            found = self.nearest(y_K, shortlist, selector=None, in_all_cells=False)
            num_found += int(np.isin(highest(scores_L, num_compared), found).sum())
        return num_found / (num_compared * _NUM_TEXTS)

    def _scaled(self, y_NK: FloatArray) -> NDArray[np.float32]:
        return (y_NK * self._scale_K).astype(np.float32)


def _all_scores(gaussians: WhitenedGaussians, texts_NK: FloatArray) -> NDArray[np.float32]:
    """The scores `[N, L]` of texts without a remainder, in float32: enough to tell which adapters are the best."""
    shared_NG = np.stack([gaussians.shared_terms(y_K, 0.0) for y_K in texts_NK])
    scores_NL = np.empty((len(texts_NK), gaussians.num_adapters), dtype=np.float32)
    for start in range(0, gaussians.num_adapters, _BATCH):
        batch = slice(start, start + _BATCH)
        group = gaussians.group_L[batch]
        slopes = gaussians.slopes_of(batch).astype(np.float32)
        scores_NL[:, batch] = texts_NK.astype(np.float32) @ slopes.T + gaussians.constants[batch] + shared_NG[:, group]
    return scores_NL
