"""A sentence encoder without a model: each word has a fixed random direction, a text is the sum of its words."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class HashEncoder:
    """Texts that share words are near each other. Deterministic across processes and machines."""

    def __init__(self, *, encoder_id: str = "hash:1", embedding_dim: int = 32, seconds_per_pass: float = 0.0) -> None:
        self._encoder_id = encoder_id
        self._embedding_dim = embedding_dim
        self._seconds_per_pass = seconds_per_pass
        self.batches: list[list[str]] = []

    @property
    def encoder_id(self) -> str:
        return self._encoder_id

    @property
    def embedding_dim(self) -> int:
        return self._embedding_dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        time.sleep(self._seconds_per_pass)
        sums_ME = np.stack([sum(map(self._direction, text.split() or [""])) for text in texts])
        return (sums_ME / np.linalg.norm(sums_ME, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) for text in texts)

    def _direction(self, word: str) -> NDArray[np.float64]:
        seed = int.from_bytes(hashlib.sha256(word.encode(errors="surrogatepass")).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=self._embedding_dim)
