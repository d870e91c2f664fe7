"""Base models for measuring: the layer shapes of real ones, random weights.

What a step costs depends on shapes and types, not on what the weights say.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hilora.errors import InvalidInput
from services.worker.models.loader import LoadedModel

_EOS_TOKEN_ID = 1
"""Ends an answer; requests of the benchmark ignore it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What a random base looks like."""

    name: str
    architecture: str
    """transformers' model type."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


_SHAPES = (
    ModelShape(
        name="qwen2.5-0.5b",
        architecture="qwen2",
        config={
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
    ModelShape(
        name="llama-1024x12",
        architecture="llama",
        config={
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    ModelShape(
        name="tiny",
        architecture="llama",
        config={
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    ModelShape(
        name="llama-3.1-8b",
        architecture="llama",
        config={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": False,
        },
    ),
)
MODEL_SHAPES: Mapping[str, ModelShape] = {shape.name: shape for shape in _SHAPES}


def find_shape(name: str) -> ModelShape:
    """A shape by name.

    Raises:
        InvalidInput: `unknown_model_shape`.
    """
    if name not in MODEL_SHAPES:
        raise InvalidInput(
            f"No such model shape: {name}.",
            code="unknown_model_shape",
            remedy=f"Choose from {', '.join(MODEL_SHAPES)}.",
            place="model",
        )
    return MODEL_SHAPES[name]


def build_base(
    shape: ModelShape, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedModel:
    """A random model with a tokenizer of its vocabulary's size, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": _EOS_TOKEN_ID, "pad_token_id": 2}
    config = AutoConfig.for_model(shape.architecture, **{**shape.config, **special})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return LoadedModel(
        name=shape.name,
        model=model.eval().requires_grad_(False),
        tokenizer=_tokenizer(int(shape.config["vocab_size"])),
        eos_token_ids=frozenset({_EOS_TOKEN_ID}),
    )


def twin_of(loaded: LoadedModel) -> LoadedModel:
    """The same weights in memory under modules of their own, to be wrapped or replaced without touching the other's."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in loaded.model.parameters()}
    return LoadedModel(
        name=loaded.name,
        model=copy.deepcopy(loaded.model, shared),
        tokenizer=loaded.tokenizer,
        eos_token_ids=loaded.eos_token_ids,
        base_revision=loaded.base_revision,
    )


def _tokenizer(vocab_size: int) -> Any:
    """A word a token, decoded by the library that real tokenizers use: turning tokens to text costs what it costs."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE(vocab={f"\u0120word{idx}": idx for idx in range(vocab_size)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
