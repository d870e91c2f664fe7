"""Tiny random encoder-decoder models of the T5 family, and what transformers computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from services.worker.models.loader import LoadedModel
from tests.builders.models import VOCAB_SIZE, ByteTokenizer, save_byte_tokenizer

START_TOKEN_ID = 2
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": START_TOKEN_ID,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-v1.0": ("t5", {"feed_forward_proj": "relu", "tie_word_embeddings": True, "scale_decoder_outputs": True}),
    "t5-v1.1": (
        "t5",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False},
    ),
    "mt5": ("mt5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("umt5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
SEQ2SEQ_VARIANTS = tuple(_VARIANTS)
"""FLAN-T5 is v1.1 with other weights."""


def make_seq2seq(variant: str = "t5-v1.1", *, seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """A random encoder-decoder model; weights large enough that logits differ clearly."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    model_type, settings = _VARIANTS[variant]
    torch.manual_seed(seed)
    model: Any = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(model_type, **{**_COMMON, **settings, **config}), dtype=dtype
    )
    if not settings["tie_word_embeddings"]:
        # transformers ties what it makes anew, whatever the config says, and unties what it loads.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # T5 does not divide its scores by anything: smaller queries, or attention looks at one token only.
                parameter.normal_(std=0.6 if "relative_attention_bias" in name else 0.15)
    return model.eval().requires_grad_(False)


def load_tiny_seq2seq(variant: str = "t5-v1.1", *, dtype: torch.dtype = torch.float64, **config: Any) -> LoadedModel:
    """`make_seq2seq` as the engine wants it."""
    return LoadedModel(
        name=f"tiny-{variant}",
        model=make_seq2seq(variant, dtype=dtype, **config),
        tokenizer=ByteTokenizer(),
        eos_token_ids=frozenset({1}),
    )


def save_seq2seq_base(folder: Path, variant: str = "t5-v1.1", **config: Any) -> None:
    """Write a tiny base with a byte-level tokenizer as `from_pretrained` wants it."""
    vocab_size = save_byte_tokenizer(folder)
    make_seq2seq(variant, vocab_size=vocab_size, dtype=torch.float32, **config).save_pretrained(folder)


def seq2seq_logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Logits of every position of an answer, by one pass over the whole of it without a cache."""
    with torch.inference_mode():
        return model(
            input_ids=torch.tensor([prompt]),
            decoder_input_ids=torch.tensor([[START_TOKEN_ID, *completion[:-1]]]),
            use_cache=False,
        ).logits[0]
