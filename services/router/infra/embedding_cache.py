"""Embeddings of texts that came lately, bounded in number and in bytes; the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

_OVERHEAD_BYTES = 300
"""What an entry takes beside its numbers: array and key objects, its place in the table."""


class EmbeddingCache:
    """A table from text hashes to vectors. Not thread-safe: it lives on the event loop.

    Args:
        max_entries: most texts; 0 keeps none.
        max_bytes: most memory, overhead included.
    """

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The vector of a text, which thereby counts as used."""
        vector_E = self._vectors.get(key)
        if vector_E is not None:
            self._vectors.move_to_end(key)
        return vector_E

    def put(self, key: bytes, vector_E: NDArray[np.float32]) -> None:
        """Keep a vector, and let go of those that were not used for longest until the bounds hold."""
        before = self._vectors.pop(key, None)
        if before is not None:
            self.num_bytes -= _size_of(before)
        self._vectors[key] = vector_E
        self.num_bytes += _size_of(vector_E)
        while self._vectors and (len(self._vectors) > self._max_entries or self.num_bytes > self._max_bytes):
            _, gone_E = self._vectors.popitem(last=False)
            self.num_bytes -= _size_of(gone_E)

    def clear(self) -> None:
        """Forget everything."""
        self._vectors.clear()
        self.num_bytes = 0


def _size_of(vector_E: NDArray[np.float32]) -> int:
    return vector_E.nbytes + _OVERHEAD_BYTES
