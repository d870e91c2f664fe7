"""Thousands of adapters that nobody trained: random factors in the testbed's shapes, texts of made-up tasks.

Tasks come in families of twenty. A text mixes words of its task, of its family and of none; the encoder gives every
word a fixed random direction, with the spectrum of a real encoder's, and a text the mean of its words. It is a real
sentence-transformers folder, so that every service loads it like any other; it costs next to nothing to run.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

EMBEDDING_DIM = 384
NUM_SAMPLES = 20
_NUM_WORDS = 8192
_FAMILY = 20


def task_texts(task: int, *, first: int = 0, num: int = NUM_SAMPLES) -> list[str]:
    """Texts of a task, the same at every call; `first` beyond `NUM_SAMPLES` gives ones the adapter never showed."""
    own = np.random.default_rng([1, task]).integers(_NUM_WORDS, size=8)
    family = np.random.default_rng([2, task // _FAMILY]).integers(_NUM_WORDS, size=12)
    texts: list[str] = []
    for number in range(first, first + num):
        rng = np.random.default_rng([3, task, number])
        words = np.concatenate([rng.choice(own, 4), rng.choice(family, 3), rng.integers(_NUM_WORDS, size=5)])
        texts.append(" ".join(f"w{word}" for word in words))
    return texts


def write_encoder(folder: Path) -> None:
    """Write the encoder as a folder that `SentenceTransformerEncoder` loads."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{word}": word for word in range(_NUM_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106  (a word)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    spectrum = (1.0 + np.arange(EMBEDDING_DIM)) ** -0.5
    weights = np.random.default_rng(0).standard_normal((_NUM_WORDS, EMBEDDING_DIM)) * spectrum
    encoder = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    SentenceTransformer(modules=[encoder]).save(str(folder))


class AdapterWriter:
    """Writes adapters as PEFT folders with their `samples.jsonl`.

    Args:
        shipped: a PEFT folder of the testbed, whose shapes all adapters take.
    """

    def __init__(self, shipped: Path) -> None:
        self._config = (shipped / "adapter_config.json").read_bytes()
        tensors = safetensors.numpy.load((shipped / "adapter_model.safetensors").read_bytes())
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def write(self, task: int, folder: Path) -> None:
        """One adapter; equal tasks get equal files."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng([4, task])
        tensors: dict[str, NDArray[np.float32]] = {
            name: 0.05 * rng.standard_normal(shape, dtype=np.float32) for name, shape in self._shapes.items()
        }
        (folder / "adapter_config.json").write_bytes(self._config)
        (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(tensors))
        lines = (json.dumps({"text": text}) + "\n" for text in task_texts(task))
        (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
