"""A sentence encoder compiled by OpenVINO: the same vectors, from half of a CPU's time for a short text.

What is compiled is all that follows the tokeniser: transformer, pooling, normalisation. In float32 its vectors are
torch's up to the order of sums (some 1e-7); in bfloat16 they lie within half a per cent of them, which routing does not
notice (ADR 0038), for three quarters of the time. So statistics made with one serve the other. The way of
sentence-transformers around a pass is left out: it takes two milliseconds, which one short text feels.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput

_TOKENISED = (
    "",
    "  spaces\t and\nlines ",
    "ÜBERSETZE 日本語 \U0001f600 e\u0301",
    "don't [SEP] <s> </s>",
    "word " * 2000,
)
"""Texts by which two ways to token ids are compared."""
_EXAMPLES = ["Two short texts of different length show which sizes may change.", "Two."]


class EncoderPrecision(StrEnum):
    """What a compiled encoder computes in."""

    AUTO = "auto"
    """`BFLOAT16` on processors with instructions for it, else `FLOAT32`."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


_MOST_DIFFERENCE = {EncoderPrecision.FLOAT32: 1e-4, EncoderPrecision.BFLOAT16: 1e-2}
"""Of a coordinate of a unit vector from torch's; what is right differs by some 1e-7, or some 1e-3."""


_TOKEN_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What a transformer may want, and its name in an encoding of the bare tokeniser."""


class OpenVinoEncoder:
    """The compiled copy of a sentence encoder; takes seconds to make. Serves one call at a time.

    Args:
        sentence_model: a loaded `SentenceTransformer` on the CPU. Its tokeniser is used, the rest is not changed.
        num_threads: CPU threads of a pass; None takes half of the processors, at most four: the event loop beside it
            needs one, and a short text gains nothing from many.
        precision: what it computes in.
        pass_texts: texts of one pass.

    Raises:
        InvalidInput: `encoder_backend_unavailable`, if OpenVINO is not installed, cannot convert this model, or gives
            other vectors than torch.
    """

    def __init__(
        self,
        sentence_model: Any,
        *,
        num_threads: int | None,
        precision: EncoderPrecision = EncoderPrecision.FLOAT32,
        pass_texts: int = 8,
    ) -> None:
        # The converter reports its use to its makers, unless it finds this package missing; a service tells nobody.
        sys.modules.setdefault("openvino_telemetry", cast("Any", None))
        try:
            import openvino
        except ImportError as error:
            raise _unavailable("OpenVINO is not installed.", "pip install openvino") from error
        self._sentence_model = sentence_model
        self._pass_texts = pass_texts
        self.precision = EncoderPrecision.FLOAT32
        """What it computes in, in fact: never `AUTO`."""
        try:
            core = openvino.Core()
            expected = sentence_model.encode(_EXAMPLES, normalize_embeddings=True, show_progress_bar=False)
            graph = _converted(openvino, sentence_model, self._tokens(_EXAMPLES))
            self._names = frozenset(port.get_any_name() for port in graph.inputs)
            self._tokenizer = _bare_tokenizer(sentence_model, self._names)
            for candidate in _candidates(core, precision):
                self.precision = candidate
                compiled = core.compile_model(graph, "CPU", _options(candidate, num_threads))
                self._request: Any = compiled.create_infer_request()
                if abs(self.encode(_EXAMPLES) - expected).max() <= _MOST_DIFFERENCE[candidate]:
                    return
        except Exception as error:  # a model of anybody's, in a converter of others: it may raise anything
            raise _unavailable(f"OpenVINO cannot run this encoder: {error}", "Use the backend torch.") from error
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
        if self._tokenizer is not None:
            given = _token_arrays(self._tokenizer, self._prompted(texts), self._names)
        else:
            tokens = self._tokens(texts)
            given = {name: tokens[name].numpy() for name in self._names}
        vectors_BE = np.array(self._request.infer(given, share_inputs=True)[0], dtype=np.float32)
        if self.precision is EncoderPrecision.BFLOAT16:
            # Three digits of a length are too few for what is compared by cosines.
            vectors_BE /= np.linalg.norm(vectors_BE, axis=1, keepdims=True)
        return vectors_BE

    def _tokens(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """What the transformer reads of some texts, the model's own default prompt before each."""
        return _tokenised(self._sentence_model, self._prompted(texts))

    def _prompted(self, texts: Sequence[str]) -> list[str]:
        model = self._sentence_model
        prompt = model.prompts.get(model.default_prompt_name) or ""
        return [prompt + text for text in texts]


def _tokenised(sentence_model: Any, texts: list[str]) -> Mapping[str, Any]:
    # The method had another name before sentence-transformers 6.
    return (getattr(sentence_model, "preprocess", None) or sentence_model.tokenize)(texts)


def _bare_tokenizer(sentence_model: Any, names: frozenset[str]) -> Any:
    """The tokeniser without what transformers put around it, which takes half a millisecond of a short text; None where
    it is of another kind, or gives other tokens."""
    whole = sentence_model.tokenizer
    backend = getattr(whole, "backend_tokenizer", None)
    if backend is None or whole.pad_token is None or not names <= _TOKEN_FIELDS.keys():
        return None
    # A copy: transformers set lengths anew at each of their own calls.
    bare = type(backend).from_str(backend.to_str())
    bare.enable_truncation(max_length=sentence_model.max_seq_length)
    bare.enable_padding(
        direction=whole.padding_side,
        pad_id=whole.pad_token_id,
        pad_type_id=whole.pad_token_type_id,
        pad_token=whole.pad_token,
    )
    batches: list[list[str]] = [*([text] for text in _TOKENISED), list(_TOKENISED), _EXAMPLES]
    for texts in batches:
        expected, found = _tokenised(sentence_model, texts), _token_arrays(bare, texts, names)
        if not all(np.array_equal(expected[name].numpy(), found[name]) for name in names):
            return None
    return bare


def _token_arrays(tokenizer: Any, texts: list[str], names: frozenset[str]) -> dict[str, NDArray[np.int64]]:
    encodings = tokenizer.encode_batch(texts)
    return {name: np.array([getattr(one, _TOKEN_FIELDS[name]) for one in encodings], dtype=np.int64) for name in names}


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


def _unavailable(message: str, remedy: str) -> InvalidInput:
    return InvalidInput(message, code="encoder_backend_unavailable", remedy=remedy, place="encoder_backend")
