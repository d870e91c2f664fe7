"""From a loaded sentence encoder to what OpenVINO needs of it: a graph, a tokeniser, and vectors to check it by."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hilora.errors import InvalidInput

EXAMPLES = ("Two short texts of different length show which sizes may change.", "Two.")
"""By whose vectors a conversion is checked."""
_TOKENISED = (
    "",
    "  spaces\t and\nlines ",
    "ÜBERSETZE 日本語 \U0001f600 e\u0301",
    "don't [SEP] <s> </s>",
    "word " * 2000,
)
"""Texts by which two ways to token ids are compared."""
_TOKEN_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What a transformer may want, and its name in an encoding of the bare tokeniser."""


class EncoderTokenizer(Protocol):
    """From texts to what a graph reads."""

    def arrays(self, texts: Sequence[str], names: frozenset[str]) -> dict[str, NDArray[np.int64]]:
        """The named inputs `[len(texts), T]` of at least one text, padded to the longest."""
        ...

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of some texts together, without padding."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedEncoder:
    """All that makes vectors of texts, without torch."""

    graph: Any
    """An `openvino.Model` from token ids to unit vectors, for any number and length of texts."""
    tokenizer: EncoderTokenizer
    prompt: str
    """The model's own default prompt, put before each text that is embedded."""
    embedding_dim: int
    """E."""
    expected_BE: NDArray[np.float32]
    """torch's vectors of `EXAMPLES`."""


class BareTokenizer:
    """The tokeniser without what transformers put around it, which takes half a millisecond of a short text.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that truncates and pads as the encoder wants it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        """As it was given."""

    def arrays(self, texts: Sequence[str], names: frozenset[str]) -> dict[str, NDArray[np.int64]]:
        """See `EncoderTokenizer.arrays`."""
        encodings = self.tokenizer.encode_batch(list(texts))
        return {
            name: np.array([getattr(one, _TOKEN_FIELDS[name]) for one in encodings], dtype=np.int64) for name in names
        }

    def count(self, texts: Sequence[str]) -> int:
        """See `EncoderTokenizer.count`."""
        return sum(sum(one.attention_mask) for one in self.tokenizer.encode_batch(list(texts)))


class ModelTokenizer:
    """The way to token ids of a loaded `SentenceTransformer`."""

    def __init__(self, sentence_model: Any) -> None:
        self._sentence_model = sentence_model

    def arrays(self, texts: Sequence[str], names: frozenset[str]) -> dict[str, NDArray[np.int64]]:
        """See `EncoderTokenizer.arrays`."""
        tokens = tokenised(self._sentence_model, texts)
        return {name: tokens[name].numpy() for name in names}

    def count(self, texts: Sequence[str]) -> int:
        """See `EncoderTokenizer.count`."""
        model = self._sentence_model
        tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)
        return sum(len(token_ids) for token_ids in tokens["input_ids"])


def import_openvino() -> Any:
    """The package. Raises InvalidInput: `encoder_backend_unavailable`, without it."""
    # The converter reports its use to its makers, unless it finds this package missing; a service tells nobody.
    sys.modules.setdefault("openvino_telemetry", cast("Any", None))
    try:
        import openvino
    except ImportError as error:
        raise unavailable("OpenVINO is not installed.", "pip install openvino") from error
    return openvino


def unavailable(message: str, remedy: str = "Use the backend torch.") -> InvalidInput:
    """The error of an encoder that OpenVINO cannot run."""
    return InvalidInput(message, code="encoder_backend_unavailable", remedy=remedy, place="encoder_backend")


def convert_encoder(sentence_model: Any) -> ConvertedEncoder:
    """Convert a loaded `SentenceTransformer` on the CPU, which is not changed; takes seconds.

    Raises:
        InvalidInput: `encoder_backend_unavailable`, if OpenVINO is not installed or cannot convert this model.
    """
    openvino = import_openvino()
    try:
        prompt = sentence_model.prompts.get(sentence_model.default_prompt_name) or ""
        expected = sentence_model.encode(list(EXAMPLES), normalize_embeddings=True, show_progress_bar=False)
        graph = _converted(openvino, sentence_model, tokenised(sentence_model, [prompt + text for text in EXAMPLES]))
        return ConvertedEncoder(
            graph=graph,
            tokenizer=_bare_tokenizer(sentence_model, input_names(graph)) or ModelTokenizer(sentence_model),
            prompt=prompt,
            embedding_dim=int(sentence_model.get_embedding_dimension()),
            expected_BE=np.asarray(expected, dtype=np.float32),
        )
    except Exception as error:  # a model of anybody's, in a converter of others: it may raise anything
        raise unavailable(f"OpenVINO cannot run this encoder: {error}") from error


def input_names(graph: Any) -> frozenset[str]:
    """What a graph reads, by name."""
    return frozenset(port.get_any_name() for port in graph.inputs)


def tokenised(sentence_model: Any, texts: Sequence[str]) -> Mapping[str, Any]:
    """What a `SentenceTransformer` makes of some texts before its transformer reads them."""
    # The method had another name before sentence-transformers 6.
    return (getattr(sentence_model, "preprocess", None) or sentence_model.tokenize)(list(texts))


def _bare_tokenizer(sentence_model: Any, names: frozenset[str]) -> BareTokenizer | None:
    """None where the tokeniser is of another kind, or gives other tokens alone."""
    whole = sentence_model.tokenizer
    backend = getattr(whole, "backend_tokenizer", None)
    if backend is None or whole.pad_token is None or not names <= _TOKEN_FIELDS.keys():
        return None
    # A copy: transformers set lengths anew at each of their own calls.
    tokenizer = type(backend).from_str(backend.to_str())
    tokenizer.enable_truncation(max_length=sentence_model.max_seq_length)
    tokenizer.enable_padding(
        direction=whole.padding_side,
        pad_id=whole.pad_token_id,
        pad_type_id=whole.pad_token_type_id,
        pad_token=whole.pad_token,
    )
    bare, models_own = BareTokenizer(tokenizer), ModelTokenizer(sentence_model)
    batches = [*([text] for text in _TOKENISED), list(_TOKENISED), list(EXAMPLES)]
    for texts in batches:
        expected, found = models_own.arrays(texts, names), bare.arrays(texts, names)
        if not all(np.array_equal(expected[name], found[name]) for name in names):
            return None
    return bare


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
