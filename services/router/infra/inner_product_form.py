"""A pool's Gaussians as vectors whose inner product with a text's vector is the score.

    stored   [u_i / v_i,  -1/2 sum u_i^2 / v_i,  one-hot(sample count)]
    asked    [y,          1,                     terms shared by a sample count]

filled up with zeros to a multiple of 16, which is what the widest registers want.

The constant takes two coordinates: it is far larger than the others, and in float16 one would round it by whole nats.
The shared terms are given relative to their largest, the offset, for the same reason.

Shapes: L adapters, G distinct sample counts, K coordinates, V >= K + 2 + G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.pooled_gaussian import WhitenedGaussians

_BATCH = 8192
_LANES = 16
_SUMMATION_ERROR = 3e-5
"""Relative error of a float32 sum of some hundred products, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingBound:
    """How far an inner product of the stored vectors can lie from the score, at most."""

    slope_error: float
    """The longest difference between a stored slope and its exact value."""
    constant_error: float
    """The largest one of a stored constant."""
    length: float
    """The longest slope."""
    constant: float
    """The largest constant."""

    def of(self, y_K: FloatArray) -> float:
        """The bound for one text, by Cauchy and Schwarz."""
        length = float(np.linalg.norm(y_K))
        magnitude = self.length * length + self.constant
        return self.slope_error * length + self.constant_error + _SUMMATION_ERROR * magnitude


class InnerProductForm:
    """See the module.

    Args:
        gaussians: the pool.
        dtype: what the stored vectors are rounded to.
    """

    def __init__(self, gaussians: WhitenedGaussians, *, dtype: type[np.float32 | np.float16]) -> None:
        self._gaussians = gaussians
        num_groups = len(gaussians.variances_GK)
        largest = float(np.abs(gaussians.constants).max(initial=1.0))
        self._constant_unit = _unit(largest)
        # With c = 1/2 sum u^2 / v no coordinate u / v of a slope exceeds sqrt(2 c / v).
        self._slope_unit = _unit((2.0 * largest) ** 0.5 * float(gaussians.precisions.max()) ** 0.5)
        num_coordinates = gaussians.means_LK.shape[1]
        self._size = -(-(num_coordinates + 2 + num_groups) // _LANES) * _LANES
        self.vectors_LV = np.zeros((gaussians.num_adapters, self._size), dtype=np.float32)
        slope_error, length = 0.0, 0.0
        for start in range(0, gaussians.num_adapters, _BATCH):
            batch = slice(start, start + _BATCH)
            group = gaussians.group_L[batch]
            slopes = gaussians.means_LK[batch] * gaussians.precisions[group] / self._slope_unit
            rounded = slopes.astype(dtype)
            self.vectors_LV[batch, :num_coordinates] = rounded
            self.vectors_LV[np.arange(start, start + len(group)), num_coordinates + 2 + group] = 1.0
            slope_error = max(slope_error, float(np.linalg.norm(slopes - rounded, axis=1).max()))
            length = max(length, float(np.linalg.norm(slopes, axis=1).max()))
        scaled_L = gaussians.constants / self._constant_unit
        coarse_L = scaled_L.astype(dtype).astype(np.float64)
        fine_L = (scaled_L - coarse_L).astype(dtype).astype(np.float64)
        self.vectors_LV[:, num_coordinates] = coarse_L
        self.vectors_LV[:, num_coordinates + 1] = fine_L
        self.bound = RoundingBound(
            slope_error=slope_error * self._slope_unit,
            constant_error=float(np.abs(scaled_L - coarse_L - fine_L).max()) * self._constant_unit,
            length=length * self._slope_unit,
            constant=largest,
        )

    def question(self, y_K: FloatArray, rest: float) -> tuple[NDArray[np.float32], float]:
        """The vector `[V]` of a located text, and the offset to add to its inner products."""
        shared_G = self._gaussians.shared_terms(y_K, rest)
        offset = float(shared_G.max())
        question_V = np.zeros(self._size, dtype=np.float32)
        question_V[: len(y_K)] = y_K * self._slope_unit
        question_V[len(y_K) : len(y_K) + 2] = self._constant_unit
        question_V[len(y_K) + 2 : len(y_K) + 2 + len(shared_G)] = shared_G - offset
        return question_V, offset


def _unit(largest: float) -> float:
    """A power of 2 that brings values up to `largest` well into float16; dividing by it rounds nothing."""
    return 2.0 ** max(0.0, np.ceil(np.log2(largest / 2.0**14)))
