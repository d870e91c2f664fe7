"""Scores of adapters in single precision, with a bound of what that took from them.

Shapes: L adapters, S scored ones, K coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.pooled_gaussian import WhitenedGaussians

_BATCH = 8192
_SUMMATION_ERROR = 3e-5
"""Relative error of a float32 sum of some hundred products, at most."""


class SingleScores:
    """Some adapters of a pool, ready to be scored by one matrix product; implements `Scores`.

    Args:
        gaussians: the pool.
        places_S: which of it, in the order of the scores; all of it if None.
    """

    num_shortlisted = 0
    """What single precision takes is far less than what lies between an answer and the spare results behind it."""

    def __init__(self, gaussians: WhitenedGaussians, places_S: NDArray[np.intp] | None = None) -> None:
        self._gaussians = gaussians
        places_S = np.arange(gaussians.num_adapters) if places_S is None else places_S
        self._group_S = gaussians.group_L[places_S]
        self._constant_S = gaussians.constants[places_S]
        # One coordinate after the other: BLAS multiplies a vector with rows in a third of the time of columns.
        self._slopes_KS = np.empty((gaussians.means_LK.shape[1], len(places_S)), dtype=np.float32)
        self._slope_error, self._length = 0.0, 0.0
        for start in range(0, len(places_S), _BATCH):
            batch = slice(start, start + _BATCH)
            slopes = gaussians.slopes_of(places_S[batch])
            rounded = slopes.astype(np.float32)
            self._slopes_KS[:, batch] = rounded.T
            self._slope_error = max(self._slope_error, float(np.linalg.norm(slopes - rounded, axis=1).max()))
            self._length = max(self._length, float(np.linalg.norm(slopes, axis=1).max()))

    def of(self, y_K: FloatArray, rest: float) -> FloatArray:
        """See `Scores.of`; `[S]`."""
        scores_S = (y_K.astype(np.float32) @ self._slopes_KS).astype(np.float64)
        scores_S += self._constant_S
        scores_S += self._gaussians.shared_terms(y_K, rest).take(self._group_S)
        return scores_S

    def error(self, y_K: FloatArray) -> float:
        """See `Scores.error`."""
        # By Cauchy and Schwarz. The text's own rounding is a part of what summing in single precision may take.
        return float(np.linalg.norm(y_K)) * (self._slope_error + _SUMMATION_ERROR * self._length)
