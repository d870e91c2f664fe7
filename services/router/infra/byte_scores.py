"""Scores of a large pool's adapters from slopes in bytes, with a bound of what that took from them.

    slope . y   ~   sum_k  stored_k * asked_k * unit     stored: whole numbers that fit a byte, asked: 16-bit numbers

Each coordinate of the slopes has a unit of its own, which is multiplied into the text's; constants stay in float64. The
products are whole numbers and exact, so all that was lost is what either side was rounded by: of the slopes it is
known for the pool, of the text for each text.

Shapes: L adapters, K coordinates, V numbers of a row: the coordinates, filled up with zeros.
"""

from __future__ import annotations

import numpy as np

from hilora.covariance import FloatArray
from hilora.pooled_gaussian import WhitenedGaussians

try:
    from services.router.infra import _native
except ImportError:
    _native = None

_BATCH = 8192
_LANES = 32
"""Rows are filled up to a multiple of it, which is what the widest registers want."""
_LARGEST = 127
"""Of a byte's whole numbers."""
_LARGEST_ASKED = 2**15 - 1
_LARGEST_SUM = 2**31 - 1


def is_byte_kernel_compiled() -> bool:
    """Whether bytes can be multiplied here; installing the package compiles the kernel where there is a C compiler."""
    return _native is not None


class ByteScores:
    """A pool, ready to be scored; implements `Scores`.

    Args:
        gaussians: the pool, with at least one coordinate.
    """

    num_shortlisted = 256
    """A text's rounding moves scores by whole nats: so many have to be looked at again to be sure of the first ones."""

    def __init__(self, gaussians: WhitenedGaussians) -> None:
        self._gaussians = gaussians
        num_adapters, num_coordinates = gaussians.means_LK.shape
        self._unit_K = self._units()
        width = -(-num_coordinates // _LANES) * _LANES
        self._most_asked = min(_LARGEST_ASKED, _LARGEST_SUM // (_LARGEST * width))
        # Not `zeros`: of what is empty NumPy asks for large pages, which a pass over all of it is faster with.
        self._stored_LV = np.empty((num_adapters, width), dtype=np.int8)
        self._stored_LV[:, num_coordinates:] = 0
        self._slope_error, self._stored_length = 0.0, 0.0
        for start in range(0, num_adapters, _BATCH):
            batch = slice(start, start + _BATCH)
            slopes = gaussians.slopes_of(batch)
            stored = np.rint(slopes / self._unit_K)
            self._stored_LV[batch, :num_coordinates] = stored
            lost = np.linalg.norm(slopes - stored * self._unit_K, axis=1).max()
            self._slope_error = max(self._slope_error, float(lost))
            self._stored_length = max(self._stored_length, float(np.linalg.norm(stored, axis=1).max()))

    def _units(self) -> FloatArray:
        """The largest slope of each coordinate, as a hundred-and-twenty-seventh."""
        largest_K = np.zeros(self._gaussians.means_LK.shape[1])
        for start in range(0, self._gaussians.num_adapters, _BATCH):
            slopes = self._gaussians.slopes_of(slice(start, start + _BATCH))
            np.maximum(largest_K, np.abs(slopes).max(axis=0), out=largest_K)
        return np.where(largest_K > 0.0, largest_K, 1.0) / _LARGEST

    def of(self, y_K: FloatArray, rest: float) -> FloatArray:
        """See `Scores.of`."""
        assert _native is not None, "the kernel was not compiled"
        asked_V = np.zeros(self._stored_LV.shape[1], dtype=np.int16)
        unit = self._unit_of(y_K)
        asked_V[: len(y_K)] = np.rint(y_K * self._unit_K / unit)
        products_L = np.empty(len(self._stored_LV), dtype=np.int32)
        _native.byte_products(self._stored_LV, asked_V, products_L)
        scores_L = products_L.astype(np.float64)
        scores_L *= unit
        scores_L += self._gaussians.constants
        scores_L += self._gaussians.shared_terms(y_K, rest).take(self._gaussians.group_L)
        return scores_L

    def error(self, y_K: FloatArray) -> float:
        """See `Scores.error`."""
        unit, weighted_K = self._unit_of(y_K), y_K * self._unit_K
        lost = float(np.linalg.norm(weighted_K - np.rint(weighted_K / unit) * unit))
        # By Cauchy and Schwarz, once for either side.
        return self._slope_error * float(np.linalg.norm(y_K)) + self._stored_length * lost

    def _unit_of(self, y_K: FloatArray) -> float:
        """What one whole number of a text stands for."""
        largest = float(np.abs(y_K * self._unit_K).max())
        return (largest or 1.0) / self._most_asked
