"""A sentence encoder compiled by OpenVINO: the same vectors, from half of a CPU's time for a short text.

What is compiled is all that follows the tokeniser: transformer, pooling, normalisation. In float32 its vectors are
torch's up to the order of sums (some 1e-7); in bfloat16 they lie within half a per cent of them, which routing does not
notice (ADR 0038), for three quarters of the time. So statistics made with one serve the other. The way of
sentence-transformers around a pass is left out: it takes two milliseconds, which one short text feels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.openvino_conversion import EXAMPLES, ConvertedEncoder, import_openvino, input_names, unavailable


class EncoderPrecision(StrEnum):
    """What a compiled encoder computes in."""

    AUTO = "auto"
    """`BFLOAT16` on processors with instructions for it, else `FLOAT32`."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


_MOST_DIFFERENCE = {EncoderPrecision.FLOAT32: 1e-4, EncoderPrecision.BFLOAT16: 1e-2}
"""Of a coordinate of a unit vector from torch's; what is right differs by some 1e-7, or some 1e-3."""


class OpenVinoEncoder:
    """A converted encoder, compiled for this CPU; takes half a second to make. Serves one call at a time.

    Args:
        converted: what is compiled.
        num_threads: CPU threads of a pass; None takes half of the processors, at most four: the event loop beside it
            needs one, and a short text gains nothing from many.
        precision: what it computes in.
        pass_texts: texts of one pass.

    Raises:
        InvalidInput: `encoder_backend_unavailable`, if OpenVINO is not installed, cannot compile this encoder, or gives
            other vectors than torch.
    """

    def __init__(
        self,
        converted: ConvertedEncoder,
        *,
        num_threads: int | None,
        precision: EncoderPrecision = EncoderPrecision.FLOAT32,
        pass_texts: int = 8,
    ) -> None:
        openvino = import_openvino()
        self._tokenizer = converted.tokenizer
        self._prompt = converted.prompt
        self._pass_texts = pass_texts
        self._names = input_names(converted.graph)
        self.embedding_dim = converted.embedding_dim
        """E."""
        self.precision = EncoderPrecision.FLOAT32
        """What it computes in, in fact: never `AUTO`."""
        try:
            core = openvino.Core()
            for candidate in _candidates(core, precision):
                self.precision = candidate
                compiled = core.compile_model(converted.graph, "CPU", _options(candidate, num_threads))
                self._request: Any = compiled.create_infer_request()
                if abs(self.encode(EXAMPLES) - converted.expected_BE).max() <= _MOST_DIFFERENCE[candidate]:
                    return
        except Exception as error:  # a model of anybody's, in a compiler of others: it may raise anything
            raise unavailable(f"OpenVINO cannot run this encoder: {error}") from error
        raise unavailable("OpenVINO gives other vectors than torch for this encoder.")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `[len(texts), E]` of at least one text."""
        if len(texts) == 1:
            return self._pass(texts)
        # Texts of a like length together: short ones are not padded to the longest of all.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = [order[start : start + self._pass_texts] for start in range(0, len(texts), self._pass_texts)]
        sorted_BE = np.concatenate([self._pass([texts[place] for place in part]) for part in parts])
        vectors_BE = np.empty_like(sorted_BE)
        vectors_BE[order] = sorted_BE
        return vectors_BE

    def count(self, texts: Sequence[str]) -> int:
        """Tokens that are read of some texts together, special ones included, the model's own prompt not."""
        return self._tokenizer.count(texts)

    def _pass(self, texts: Sequence[str]) -> NDArray[np.float32]:
        given = self._tokenizer.arrays([self._prompt + text for text in texts], self._names)
        vectors_BE = np.array(self._request.infer(given, share_inputs=True)[0], dtype=np.float32)
        if self.precision is EncoderPrecision.BFLOAT16:
            # Three digits of a length are too few for what is compared by cosines.
            vectors_BE /= np.linalg.norm(vectors_BE, axis=1, keepdims=True)
        return vectors_BE


def _candidates(core: Any, wanted: EncoderPrecision) -> Sequence[EncoderPrecision]:
    """What is tried, one after the other."""
    if wanted is not EncoderPrecision.AUTO:
        return (wanted,)
    # Named for the processors alone that compute in it: others would only convert to and fro.
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return (EncoderPrecision.FLOAT32,)
    return (EncoderPrecision.BFLOAT16, EncoderPrecision.FLOAT32)


def _options(precision: EncoderPrecision, num_threads: int | None) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision is EncoderPrecision.BFLOAT16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads or _few_threads(),
        # A thread that may not move waits for its processor while another one is free.
        "ENABLE_CPU_PINNING": False,
    }


def _few_threads() -> int:
    return min(4, max(1, (os.cpu_count() or 1) // 2))
