"""A pool's Gaussians as vectors whose inner product with a text's vector is the score.

    stored   [u_i / v_i / unit,  -1/2 sum u_i^2 / v_i,  one-hot(sample count)]
    asked    [y * unit,          1,                     terms shared by a sample count]

filled up with zeros to a multiple of 16, which is what the widest registers want.

What is stored are whole numbers from -127 to 127, which fit a byte; each coordinate has a unit of its own. The constant
takes three coordinates, its digits to the base 254: it is far larger than the others, and one byte would round it by
whole nats. The shared terms are given relative to their largest, the offset, so that little is lost in a sum of single
precision. What is asked stays in single precision: whole numbers on that side, too, would be read in half of the time,
and would round by so much that nothing could be proved of a pool of real tasks (docs/experiments.md, 2026-11-27).

Shapes: L adapters, G distinct sample counts, K coordinates, V >= K + 3 + G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.pooled_gaussian import WhitenedGaussians

_BATCH = 8192
_LANES = 16
_LARGEST = 127.0
"""Of a byte's whole numbers."""
_NUM_DIGITS = 3
_DIGIT_BASE = 254.0
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
    """

    def __init__(self, gaussians: WhitenedGaussians) -> None:
        self._gaussians = gaussians
        num_coordinates = gaussians.means_LK.shape[1]
        num_groups = len(gaussians.variances_GK)
        self._size = -(-(num_coordinates + _NUM_DIGITS + num_groups) // _LANES) * _LANES
        self._unit_K = self._units()
        self.vectors_LV = np.zeros((gaussians.num_adapters, self._size), dtype=np.float32)
        slope_error, length = 0.0, 0.0
        for start in range(0, gaussians.num_adapters, _BATCH):
            batch = slice(start, start + _BATCH)
            group = gaussians.group_L[batch]
            slopes = self._slopes(batch)
            rounded = np.rint(slopes / self._unit_K)
            self.vectors_LV[batch, :num_coordinates] = rounded
            self.vectors_LV[np.arange(start, start + len(group)), num_coordinates + _NUM_DIGITS + group] = 1.0
            slope_error = max(slope_error, float(np.linalg.norm(slopes - rounded * self._unit_K, axis=1).max()))
            length = max(length, float(np.linalg.norm(slopes, axis=1).max()))
        largest = float(np.abs(gaussians.constants).max(initial=1.0))
        self._digit_units = largest / _LARGEST / _DIGIT_BASE ** np.arange(_NUM_DIGITS)
        left_L = gaussians.constants.copy()
        for place, unit in enumerate(self._digit_units):
            digit_L = np.rint(left_L / unit)
            self.vectors_LV[:, num_coordinates + place] = digit_L
            left_L -= digit_L * unit
        self.bound = RoundingBound(
            slope_error=slope_error,
            constant_error=float(np.abs(left_L).max(initial=0.0)),
            length=length,
            constant=largest,
        )

    def _units(self) -> FloatArray:
        """The largest slope of each coordinate, as a hundred-and-twenty-seventh."""
        largest_K = np.zeros(self._gaussians.means_LK.shape[1])
        for start in range(0, self._gaussians.num_adapters, _BATCH):
            slopes = self._slopes(slice(start, start + _BATCH))
            np.maximum(largest_K, np.abs(slopes).max(axis=0), out=largest_K)
        return np.where(largest_K > 0.0, largest_K, 1.0) / _LARGEST

    def _slopes(self, batch: slice) -> FloatArray:
        group = self._gaussians.group_L[batch]
        return self._gaussians.means_LK[batch] * self._gaussians.precisions[group]

    def question(self, y_K: FloatArray, rest: float) -> tuple[NDArray[np.float32], float]:
        """The vector `[V]` of a located text, and the offset to add to its inner products."""
        shared_G = self._gaussians.shared_terms(y_K, rest)
        offset = float(shared_G.max())
        question_V = np.zeros(self._size, dtype=np.float32)
        end = len(y_K) + _NUM_DIGITS
        question_V[: len(y_K)] = y_K * self._unit_K
        question_V[len(y_K) : end] = self._digit_units
        question_V[end : end + len(shared_G)] = shared_G - offset
        return question_V, offset
