"""Ports of what comes in: where files come from, how they are read, and what they are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from services.registry.artifact import ProfileSubject, SamplesSource


class ProgressListener(Protocol):
    """Hears how far a fetch is. Called in the fetching thread, often: once a piece."""

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take note; `total_bytes` is `None` where the source does not say. Raises RequestAborted to stop the fetch."""
        ...


class AdapterSource(Protocol):
    """Brings an adapter's files in from a place the registry can read. Blocking."""

    def check(self, reference: str) -> None:
        """Refuse a reference that can be refused at once. Raises InvalidInput."""
        ...

    def fetch(self, reference: str, folder: Path, *, on_progress: ProgressListener) -> str:
        """Write config, weights (whole, or shards with their index), samples and card (where there are any).

        Returns:
            The reference made exact, as provenance keeps it; free of credentials.

        Raises:
            InvalidInput: not found, not allowed, too large, or too slow.
            InvalidAdapter: the files there make no adapter, or their archive is refused.
            Exhausted: the source wants to be asked later.
            Unavailable: the source does not answer; another attempt goes on where this one ended, if it can.
        """
        ...


class ArchiveUnpacker(Protocol):
    """Takes the adapter's files out of an uploaded archive. Blocking."""

    def __call__(self, archive: Path, folder: Path) -> str | None:
        """Write the files into a folder; the name of the one folder inside the archive, if there is one.

        Raises UnsafeArchive or InvalidAdapter.
        """
        ...


class FolderAssembler(Protocol):
    """Makes of the files that came in those that are checked. Blocking, and harmless when repeated."""

    def __call__(self, folder: Path) -> None:
        """Join shards to one weights file, and drop a card that is no text. Raises InvalidAdapter."""
        ...


class TensorFileReader(Protocol):
    """Reads a safetensors file from a stranger. Blocking."""

    def header(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors' shapes and dtypes as meta tensors, without reading data. Raises InvalidAdapter."""
        ...

    def tensors(self, path: Path) -> Mapping[str, torch.Tensor]:
        """The tensors. Raises InvalidAdapter."""
        ...


class BaseModel(Protocol):
    """The served base model, as far as adapters have to fit it. Blocking."""

    @property
    def name(self) -> str:
        """What clients call it."""
        ...

    def modules(self) -> Mapping[str, tuple[int, int]]:
        """`(out-features, in-features)` of every module that an adapter may target, by path: linear layers, embeddings,
        the linear layers of each expert. Raises InvalidInput if it cannot be read."""
        ...

    def tied_modules(self) -> frozenset[str]:
        """Paths of those modules that share one weight, as embedding and output often do. Raises like `modules`."""
        ...


class ProfileTexts(Protocol):
    """Finds or makes texts that stand for an adapter's task, where nobody sent any."""

    @property
    def source(self) -> SamplesSource:
        """What the profile's record calls it."""
        ...

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        """Texts for an adapter, each once; none if this source has nothing to say about it.

        Raises:
            Exhausted: the source wants to be asked later.
            Unavailable: the source is away; trying again later is sensible.
        """
        ...


class TextEncoder(Protocol):
    """Turns sample texts into points of one space. Blocking."""

    @property
    def encoder_id(self) -> str:
        """Equal for two encoders exactly if they give the same vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings `[len(texts), E]`, each of norm 1."""
        ...
