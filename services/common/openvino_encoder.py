"""A sentence encoder compiled by OpenVINO: the same vectors, from half of a CPU's time for a short text.

What is compiled is all that follows the tokeniser: transformer, pooling, normalisation. It computes in float32, so its
vectors are torch's up to the order of sums (some 1e-7), and statistics made with one backend serve the other. The way
of sentence-transformers around a pass is left out: it takes two milliseconds, which one short text feels.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput

_EXAMPLES = ["Two short texts of different length show which sizes may change.", "Two."]
_MOST_DIFFERENCE = 1e-4
"""Of a coordinate of a unit vector; what is right differs by some 1e-7."""


class OpenVinoEncoder:
    """The compiled copy of a sentence encoder; takes seconds to make. Serves one call at a time.

    Args:
        sentence_model: a loaded `SentenceTransformer` on the CPU. Its tokeniser is used, the rest is not changed.
        num_threads: CPU threads of a pass; None takes half of the processors, at most four: the event loop beside it
            needs one, and a short text gains nothing from many.
        pass_texts: texts of one pass.

    Raises:
        InvalidInput: `encoder_backend_unavailable`, if OpenVINO is not installed, cannot convert this model, or gives
            other vectors than torch.
    """

    def __init__(self, sentence_model: Any, *, num_threads: int | None, pass_texts: int = 8) -> None:
        # The converter reports its use to its makers, unless it finds this package missing; a service tells nobody.
        sys.modules.setdefault("openvino_telemetry", cast("Any", None))
        try:
            import openvino
        except ImportError as error:
            raise _unavailable("OpenVINO is not installed.", "pip install openvino") from error
        self._sentence_model = sentence_model
        self._pass_texts = pass_texts
        try:
            tokens = self._tokens(_EXAMPLES)
            options = {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": num_threads or _few_threads(),
                # A thread that may not move waits for its processor while another one is free.
                "ENABLE_CPU_PINNING": False,
            }
            compiled = openvino.Core().compile_model(_converted(openvino, sentence_model, tokens), "CPU", options)
            self._names = frozenset(port.get_any_name() for port in compiled.inputs)
            self._request: Any = compiled.create_infer_request()
            expected = sentence_model.encode(_EXAMPLES, normalize_embeddings=True, show_progress_bar=False)
            difference = abs(self.encode(_EXAMPLES) - expected).max()
        except Exception as error:  # a model of anybody's, in a converter of others: it may raise anything
            raise _unavailable(f"OpenVINO cannot run this encoder: {error}", "Use the backend torch.") from error
        if not difference <= _MOST_DIFFERENCE:
            raise _unavailable("OpenVINO gives other vectors than torch for this encoder.", "Use the backend torch.")

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

    def _pass(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = self._tokens(texts)
        given = {name: tokens[name].numpy() for name in self._names}
        return np.array(self._request.infer(given, share_inputs=True)[0], dtype=np.float32)

    def _tokens(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """What the transformer reads of some texts, the model's own default prompt before each."""
        model = self._sentence_model
        prompt = model.prompts.get(model.default_prompt_name) or ""
        # The method had another name before sentence-transformers 6.
        tokenize = getattr(model, "preprocess", None) or model.tokenize
        return tokenize([prompt + text for text in texts])


def _converted(openvino: Any, sentence_model: Any, tokens: Mapping[str, Any]) -> Any:
    """The graph from token ids to unit vectors, for any number and length of texts."""
    import torch  # seconds of import, as of the encoder itself

    tensors = {name: value for name, value in tokens.items() if isinstance(value, torch.Tensor)}

    class Whole(torch.nn.Module):
        """All modules of the encoder, and the normalisation that `encode` adds to them."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = sentence_model

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            features = self.encoder(dict(zip(tensors, given, strict=True)))
            return torch.nn.functional.normalize(features["sentence_embedding"], p=2, dim=1)

    # Tracing warns of conditions on sizes; what they guard is tested with texts of many lengths and batches.
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
        graph = openvino.convert_model(Whole().eval(), example_input=tuple(tensors.values()))
    for port, name in zip(graph.inputs, tensors, strict=True):
        port.get_tensor().set_names({name})
    return graph


def _few_threads() -> int:
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def _unavailable(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="encoder_backend_unavailable", remedy=remedy, place="encoder_backend")
