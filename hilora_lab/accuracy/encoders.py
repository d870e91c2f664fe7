"""Encoders to compare the default one with: averaged word vectors, and letters alone.

Shapes: N texts, E embedding dimension, V tokens of a vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilora.errors import Unavailable
from hilora_lab.evaluation.embedding import MiniLMEncoder
from hilora_lab.evaluation.offline import Encodes

_NGRAM_SIZES = (3, 4, 5)
_LEXICAL_DIM = 384


class LexicalEncoder:
    """Character 3- to 5-grams, hashed with signs into `embedding_dim` numbers: words without meaning.

    Signed hashing (Weinberger et al., 2009) keeps inner products right on average.
    """

    def __init__(self, embedding_dim: int = _LEXICAL_DIM) -> None:
        self._dim = embedding_dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[N, E]`; a text shorter than three characters has none and lies at the origin."""
        rows_NE = np.zeros((len(texts), self._dim), dtype=np.float64)
        for row_E, text in zip(rows_NE, texts, strict=True):
            counts: dict[int, int] = {}
            padded = f" {text.lower()} "
            for size in _NGRAM_SIZES:
                for start in range(len(padded) - size + 1):
                    digest = zlib.crc32(padded[start : start + size].encode())
                    counts[digest] = counts.get(digest, 0) + 1
            for digest, count in counts.items():
                row_E[digest % self._dim] += (1.0 if digest >> 31 else -1.0) * (1.0 + np.log(count))
        norms_N1 = np.linalg.norm(rows_NE, axis=1, keepdims=True)
        return (rows_NE / np.where(norms_N1 > 0.0, norms_N1, 1.0)).astype(np.float32)


class WordVectorEncoder:
    """The mean of static token vectors from the package `wordllama`, which carries them (256 dimensions).

    Raises:
        Unavailable: `encoder_not_installed`.
    """

    def __init__(self) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        spec = find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise Unavailable(
                "The word vectors are not installed.",
                code="encoder_not_installed",
                remedy="pip install wordllama==0.4.0.post1",
                place="wordllama",
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
        # The files alone are read: the package's own loader looks for one of them in another folder than it ships.
        tensors = load_file(folder / "weights" / "l2_supercat_256.safetensors")
        self._vectors_VE: NDArray[np.float32] = next(iter(tensors.values())).astype(np.float32)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[N, E]`."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        means_NE = np.stack([self._vectors_VE[one.ids].mean(axis=0) for one in encoded])
        return (means_NE / np.linalg.norm(means_NE, axis=1, keepdims=True)).astype(np.float32)


ENCODERS: Mapping[str, Callable[[], Encodes]] = {
    "all-MiniLM-L6-v2": MiniLMEncoder,
    "wordllama-256": WordVectorEncoder,
    "lexical-384": LexicalEncoder,
}
"""By the name that reports use."""
