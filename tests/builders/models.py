"""Tiny random models with real architectures, tokenizers without files, and random adapters for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.target_layer import EXPERT_PROJECTIONS, LayerKind, TargetLayer, target_features, target_layers
from services.worker.models.loader import LoadedModel

VOCAB_SIZE = 96
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_SUFFIXES = ("_proj", ".dense", ".fc1", ".fc2", ".c_attn", ".c_fc")
"""The linear layers inside the blocks of all architectures; experts count one by one."""
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "gpt2": {"n_inner": 48, "num_key_value_heads": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
}
ARCHITECTURES = tuple(_EXTRA)
EXPERT_ARCHITECTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


class ByteTokenizer:
    """Token `n` is byte `n + 3`, ids 0 to 2 are special: enough of a tokenizer for the engine, without files."""

    chat_template = None
    eos_token_id = 1

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + byte % (VOCAB_SIZE - 3) for byte in text.encode()]}

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return bytes(29 + token_id for token_id in token_ids if token_id > 2).decode("utf-8", errors="replace")


def make_model(architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A random causal language model; weights large enough that logits differ clearly."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = AutoConfig.for_model(architecture, **{**_COMMON, **_EXTRA.get(architecture, {}), **config})
    # The reference has to cap Gemma 2's scores; SDPA, which some versions choose by themselves, cannot. Everywhere else
    # it is the better reference: eager attention rounds its softmax to float32.
    implementation = "eager" if architecture == "gemma2" else "sdpa"
    # Likewise, only the plain implementation of experts computes in float64.
    options = {"experts_implementation": "eager"} if architecture in EXPERT_ARCHITECTURES else {}
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=implementation, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.eval().requires_grad_(False)


def load_tiny(
    architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> LoadedModel:
    """`make_model` as the engine wants it."""
    model = make_model(architecture, seed=seed, dtype=dtype, **config)
    return LoadedModel(
        name=f"tiny-{architecture}", model=model, tokenizer=ByteTokenizer(), eos_token_ids=frozenset({1})
    )


def linear_shapes(model: torch.nn.Module, *, suffixes: Sequence[str] = _SUFFIXES) -> dict[str, tuple[int, int]]:
    """`module path -> (in_features, out_features)` of the layers whose path ends in one of the suffixes."""
    return {
        path: (num_in, num_out)
        for path, (num_out, num_in) in target_features(model).items()
        if path.endswith(tuple(suffixes))
    }


def make_adapter(
    shapes: dict[str, tuple[int, int]], *, rank: int | dict[str, int] = 4, seed: int = 0, scale: float = 0.3
) -> DecomposedAdapter:
    """A random adapter over the given modules; `rank` may differ by module path suffix."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, (num_in, num_out) in shapes.items():
        module_rank = rank if isinstance(rank, int) else rank.get(path.rpartition(".")[2], 0)
        if module_rank == 0:
            continue
        modules[path] = RankOneComponents(
            a_RD=torch.randn(module_rank, num_in, generator=generator) * scale,
            b_RO=torch.randn(module_rank, num_out, generator=generator) * scale,
        )
    return DecomposedAdapter(basis=RocBasis.TRAINED, modules=modules)


def apply_dense(model: torch.nn.Module, adapters: Sequence[tuple[DecomposedAdapter, float]]) -> None:
    """Add the weighted adapters to the model's own weights: what full budgets must amount to."""
    weights = {path: view for layer in target_layers(model) for path, view in _weight_views(layer).items()}
    with torch.no_grad():
        for adapter, weight in adapters:
            for path, rocs in adapter.modules.items():
                dtype = weights[path].dtype
                weights[path] += weight * (rocs.b_RO.T.to(dtype) @ rocs.a_RD.to(dtype))


def _weight_views(layer: TargetLayer) -> dict[str, torch.Tensor]:
    """Each module's weight as `[out, in]`, by path; writing to it writes to the model."""
    module: Any = layer.module
    if layer.kind is LayerKind.EXPERTS:
        views = {}
        for expert_idx, (gate_up, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
            for projection, view in zip(EXPERT_PROJECTIONS, (gate_up, *gate_up.chunk(2), down), strict=True):
                views[f"{layer.path}.{expert_idx}.{projection}"] = view
        return views
    is_transposed = layer.kind is LayerKind.EMBEDDING or type(module).__name__ == "Conv1D"
    return {layer.path: module.weight.T if is_transposed else module.weight}


def save_base(
    folder: Path, *, architecture: str = "llama", seed: int = 0, chat_template: str | None = None, **config: Any
) -> None:
    """Write a tiny base with a byte-level tokenizer as `from_pretrained` wants it."""
    vocab_size = save_byte_tokenizer(folder, chat_template=chat_template)
    model = make_model(architecture, seed=seed, vocab_size=vocab_size, **config)
    model.save_pretrained(folder)


def save_byte_tokenizer(folder: Path, *, chat_template: str | None = None) -> int:
    """Write a byte-level tokenizer with ids 0 to 2 for the special tokens; returns the number of its tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={symbol: idx for idx, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=chat_template
    )
    wrapped.save_pretrained(folder)
    return len(symbols)
