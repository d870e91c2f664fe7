"""Embeddings of texts kept in a file, because embedding tens of thousands takes longer than all the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from hilora_lab.bench.routing_data import Encodes

_DIGEST_BYTES = 16


class CachedEncoder:
    """An encoder that remembers, by a digest of each text: the file holds no text.

    Args:
        encoder: embeds what is not known yet. Another encoder needs another file.
        path: the file, in safetensors; made if it is missing.
    """

    def __init__(self, encoder: Encodes, path: Path) -> None:
        self._encoder = encoder
        self._path = path
        self._known: dict[bytes, NDArray[np.float32]] = {}
        if path.exists():
            stored = safetensors.numpy.load_file(path)
            for digest, vector in zip(stored["digests"], stored["embeddings"], strict=True):
                self._known[digest.tobytes()] = vector

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encodes.encode`. What was new is in the file afterwards."""
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES] for text in texts]
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in self._known}
        if new:
            self._known.update(zip(new, self._encoder.encode(list(new.values())), strict=True))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.numpy.save_file(
                {
                    "digests": np.frombuffer(b"".join(self._known), dtype=np.uint8).reshape(-1, _DIGEST_BYTES),
                    "embeddings": np.stack(list(self._known.values())),
                },
                self._path,
            )
        return np.stack([self._known[digest] for digest in digests])
