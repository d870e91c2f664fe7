"""A base model and its tokenizer, from a folder or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from hilora.errors import InvalidInput
from services.worker.models.base_revision import base_revision_of
from services.worker.models.quantization import quantization_config_of
from services.worker.models.tensor_parallel import ParallelGroup, num_local_key_value_heads, sharding_options

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_COMPUTE_DTYPES = frozenset(_DTYPES.values())


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A language model ready for inference."""

    name: str
    model: Any
    """A transformers `...ForCausalLM`, or `...ForConditionalGeneration` if it has an encoder, in evaluation mode."""
    tokenizer: Any
    """Its transformers tokenizer."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer."""
    base_revision: str = ""
    """Equal for two loads exactly if they compute the same keys and values; see `base_revision`."""

    group: ParallelGroup | None = None
    """The processes that the model is sharded over; None: it is whole."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations, cache and components; weights may be quantised to a smaller one."""
        wide = (tensor.dtype for tensor in self.model.parameters() if tensor.dtype in _COMPUTE_DTYPES)
        return next(wide)

    @property
    def text_config(self) -> Any:
        """The part of the config that describes the decoder."""
        return self.model.config.get_text_config()

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        config = self.text_config
        return int(getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)

    @property
    def num_key_value_heads(self) -> int:
        """Key-value heads of a layer in this process; the query heads where the config names none."""
        config = self.text_config
        num_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        return num_heads if self.group is None else num_local_key_value_heads(self.model, num_heads, self.group)

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        config = self.text_config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def vocab_size(self) -> int:
        """Number of logits: valid token ids are below it."""
        return int(self.text_config.vocab_size)

    @property
    def max_position_embeddings(self) -> int:
        """The context the model was built for."""
        return int(getattr(self.text_config, "max_position_embeddings", 2048))

    @property
    def num_learned_positions(self) -> int | None:
        """Positions that the model has embeddings of its own for; None where positions are computed, so that longer
        texts are possible."""
        words = self.model.get_input_embeddings()
        tables = [
            layer for layer in self.model.modules() if isinstance(layer, torch.nn.Embedding) and layer is not words
        ]
        # Some begin to count at an offset, behind rows that nobody looks up.
        sizes = [layer.num_embeddings - int(getattr(layer, "offset", 0)) for layer in tables]
        is_table = self.max_position_embeddings in sizes
        return self.max_position_embeddings if is_table else None


def load_model(
    location: str,
    *,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    group: ParallelGroup | None = None,
) -> LoadedModel:
    """Load a base model.

    Args:
        location: a folder, or `owner/name` on the hub.
        name: its public name; the folder's name, or the hub id, if left out.
        device: `auto` (the GPU if there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: `auto` (float32 on the CPU, bfloat16 on a GPU), `float32`, `bfloat16`, `float16`, `float64`.
        quantization: what to quantise the weights to while loading, one of `QUANTIZATIONS`; a checkpoint that is
            quantised already needs none.
        group: the processes to shard the model over, all of which load it at the same time; None: it stays whole.

    Raises:
        InvalidInput: `base_model_not_loadable`, with the reason; `base_architecture_unsupported`; `invalid_device`;
            `invalid_dtype`; `invalid_quantization`; `quantization_not_installed`; `tensor_parallel_unsupported`.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    target = _resolve_device(device) if group is None else group.device
    if dtype != "auto" and dtype not in _DTYPES:
        raise InvalidInput(
            f"{dtype!r} is no supported dtype.",
            code="invalid_dtype",
            remedy=f"Use auto or one of {', '.join(_DTYPES)}.",
            place="dtype",
        )
    compute_dtype = _DTYPES.get(dtype, torch.float32 if target.type == "cpu" else torch.bfloat16)
    options: dict[str, Any] = {}
    if (config := quantization_config_of(quantization, compute_dtype=compute_dtype)) is not None:
        options = {"quantization_config": config, "device_map": {"": target}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location)
        base_config = AutoConfig.from_pretrained(location)
        has_encoder = bool(getattr(base_config, "is_encoder_decoder", False))
        if group is not None:
            options = sharding_options(group, quantization=quantization, has_encoder=has_encoder)
        auto_class = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
        model, report = _load_weights(auto_class, location, compute_dtype, options)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise _not_loadable(location, reason) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and go on.
        raise _not_loadable(location, f"{len(missing)} weights are missing, {missing[0]} first")
    if not has_encoder and "position_ids" not in signature(model.forward).parameters:
        raise InvalidInput(
            f"The base model {location} is a {type(model).__name__}, which cannot be told its tokens' positions: "
            "several requests cannot share a step.",
            code="base_architecture_unsupported",
            remedy="Serve a model whose forward takes position_ids, or one with an encoder.",
            place="base_model",
        )
    # Quantised weights come to their device by themselves, and some refuse to be moved.
    if model.device.type != target.type or target.index not in {None, model.device.index}:
        model = model.to(target)
    model = model.eval().requires_grad_(False)
    return LoadedModel(
        name=name or public_name_of(location),
        model=model,
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        base_revision=base_revision_of(location, model, dtype=str(compute_dtype), quantization=quantization),
        group=group,
    )


def _load_weights(
    auto_class: Any, location: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says about the weights it found."""
    return auto_class.from_pretrained(location, dtype=dtype, output_loading_info=True, **options)


def _not_loadable(location: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"The base model {location} cannot be loaded: {reason}.",
        code="base_model_not_loadable",
        remedy="Name a folder with config.json, safetensors weights and a tokenizer, or a reachable hub id.",
        place="base_model",
    )


def public_name_of(location: str) -> str:
    """The name a base goes by if nobody gave it one: the folder's name, or the hub id as it is."""
    path = Path(location)
    return path.resolve().name if path.is_dir() else location


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(
            f"{device!r} is no device.", code="invalid_device", remedy="Use auto, cpu, cuda or cuda:N.", place="device"
        ) from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            f"{device} was asked for, but torch sees no GPU.",
            code="invalid_device",
            remedy="Use auto or cpu, or install a CUDA build of torch.",
            place="device",
        )
    return target


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every end-of-sequence id that the generation config or the tokenizer names and the model has; the config's list
    for chat models holds end-of-turn tokens that the tokenizer does not know as such."""
    found: set[int] = set()
    for source in (model.generation_config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(value)
    # A tokenizer that was extended without its model names tokens that can never come.
    return frozenset(token_id for token_id in found if token_id < model.config.get_text_config().vocab_size)
