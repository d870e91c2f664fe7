"""Which base a worker holds, as far as that can be told without reading all of it.

What is derived from a base (a prompt's keys and values above all) may be reused only by the same base. Two loads of the
same base have the same revision. The revision of a base from the hub is its commit, and a cache filled by hand has only
the config. That of a folder is a digest of its config and, for each weight file, of the name, the size and eight
samples of a megabyte, the first and the last among them: whatever changes the weights throughout, such as a full
fine-tune or another rounding, is another base. An edit of the same size that touches only what lies between the samples
(a few layers, a few rows of an embedding) is not noticed: add an entry to the `config.json` of such a base.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_SAMPLE_BYTES = 1 << 20
_NUM_SAMPLES = 8
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf")


def base_revision_of(location: str, model: Any, *, dtype: str, quantization: str | None) -> str:
    """The revision of a loaded base.

    Args:
        location: the folder or hub id it was loaded from.
        model: the loaded transformers model; its config may know the hub's commit.
        dtype: of its activations.
        quantization: how its weights were quantised while loading.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{dtype}/{quantization}\n".encode())
    folder = Path(location)
    if folder.is_dir():
        files = {path for pattern in ("config.json", *_WEIGHT_PATTERNS) for path in folder.glob(pattern)}
        for path in sorted(files):
            _sample(path, digest)
    else:
        commit = getattr(model.config, "_commit_hash", None)
        digest.update(f"{location}@{commit}\n".encode())
        # A config without a commit comes from a cache that somebody filled by hand: its content has to do.
        digest.update(b"" if commit else model.config.to_json_string(use_diff=False).encode())
    return digest.hexdigest()[:32]


def _sample(path: Path, digest: Any) -> None:
    """Add a file's name, size, and pieces at even distances, head and tail among them."""
    num_bytes = path.stat().st_size
    digest.update(f"{path.name} {num_bytes}\n".encode())
    last = max(0, num_bytes - _SAMPLE_BYTES)
    with path.open("rb") as stream:
        for place in range(_NUM_SAMPLES):
            stream.seek(last * place // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
