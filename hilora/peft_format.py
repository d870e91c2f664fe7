"""From a PEFT checkpoint to a `LoRAAdapter`: the only place that knows PEFT's names.

PEFT stores, for each wrapped linear layer, `base_model.model.<module path>.lora_A.weight` (`[r, in]`) and
`.lora_B.weight` (`[out, r]`); some old files carry the adapter's name, `default`, before `weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import AdapterShapeMismatch, InvalidAdapter, UnsupportedAdapterFeature
from hilora.module_pattern import ModulePatterns, value_for
from hilora.peft_config import PeftLoraConfig, parse_peft_config

__all__ = ["PeftLoraConfig", "check_against_base", "parse_peft_config", "read_peft_adapter"]

_FACTOR_NAME = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
_MAX_PATH_LENGTH = 256
"""No model nests deeper; matching a pattern costs a power of it."""
_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


def read_peft_adapter(*, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> LoRAAdapter:
    """Pair up an adapter's factors and resolve each module's rank and scaling.

    Args:
        config: the content of `adapter_config.json`.
        tensors: the content of `adapter_model.safetensors`.

    Returns:
        The factors in their own dtype, by module path in alphabetical order.

    Raises:
        UnsupportedAdapterFeature: see `parse_peft_config`; or `unexpected_tensor`, a tensor that is no LoRA factor;
            or `unsupported_dtype`.
        AdapterShapeMismatch: factors that are no matrices (`factor_not_a_matrix`), or whose ranks disagree with each
            other or with the config (`rank_mismatch`).
        InvalidAdapter: a factor without its partner (`unpaired_factor`) or named twice (`duplicate_factor`), values
            that are not finite (`non_finite_weights`), nothing that changes the base (`no_effective_module`),
            `invalid_adapter_config`.
    """
    parsed = parse_peft_config(config)
    factors = _pair_up(tensors)
    rank_patterns = ModulePatterns(parsed.rank_pattern, place="rank_pattern")
    alpha_patterns = ModulePatterns(parsed.alpha_pattern, place="alpha_pattern")
    modules: dict[str, LoRAFactors] = {}
    for path, (lora_a, lora_b) in sorted(factors.items()):
        rank = value_for(path, patterns=rank_patterns, values=parsed.rank_pattern, default=parsed.rank)
        alpha = value_for(path, patterns=alpha_patterns, values=parsed.alpha_pattern, default=parsed.alpha)
        _check_factors(path, lora_a, lora_b, rank=rank)
        modules[path] = LoRAFactors(lora_a=lora_a, lora_b=lora_b, scaling=parsed.scaling_of(rank=rank, alpha=alpha))
    if not any(_has_effect(module) for module in modules.values()):
        raise InvalidAdapter(
            f"None of the adapter's {len(modules)} modules changes anything: every update is zero.",
            code="no_effective_module",
            remedy="Upload the trained weights; an untrained LoRA has a zero lora_B.",
            place="adapter_model.safetensors",
        )
    return LoRAAdapter(base_model=parsed.base_model, modules=modules)


def check_against_base(adapter: LoRAAdapter, *, base_modules: Mapping[str, tuple[int, int]]) -> None:
    """Make sure that every module exists in the served base and that the factors fit it.

    Args:
        adapter: as read.
        base_modules: `(out features, in features)` of the base's linear layers, by module path.

    Raises:
        InvalidAdapter: `unknown_target_module`.
        AdapterShapeMismatch: a factor that does not fit its layer.
    """
    for path, factors in adapter.modules.items():
        if path not in base_modules:
            raise InvalidAdapter(
                f"The adapter targets {path[:120]}, which is no linear layer of the served base.",
                code="unknown_target_module",
                remedy="Upload an adapter trained on the served base model.",
                place=path[:120],
            )
        update = (int(factors.lora_b.shape[0]), int(factors.lora_a.shape[1]))
        if update != base_modules[path]:
            raise AdapterShapeMismatch(
                f"The update of {path} is {update[0]} x {update[1]}, the base's layer "
                f"{base_modules[path][0]} x {base_modules[path][1]}.",
                remedy="Upload an adapter trained on the served base model.",
                place=path,
            )


def _pair_up(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR_NAME.fullmatch(name)
        if match is None or len(match["path"]) > _MAX_PATH_LENGTH:
            raise UnsupportedAdapterFeature(
                f"The tensor {name[:160]!r} is not a factor of a LoRA on a linear layer.",
                code="unexpected_tensor",
                remedy="Train on linear layers only, without biases, embeddings, convolutions or saved modules.",
                place=name[:160],
            )
        if tensor.dtype not in _DTYPES:
            raise UnsupportedAdapterFeature(
                f"The tensor {name[:160]!r} has the type {tensor.dtype}.",
                code="unsupported_dtype",
                remedy="Save the factors as float32, float16 or bfloat16.",
                place=name[:160],
            )
        pair = halves.setdefault(match["path"], {})
        if match["factor"] in pair:
            raise InvalidAdapter(
                f"lora_{match['factor']} of {match['path'][:120]} stands in the file twice.",
                code="duplicate_factor",
                remedy="Save the adapter again with PEFT's save_pretrained.",
                place=name[:160],
            )
        pair[match["factor"]] = tensor
    for path, pair in halves.items():
        if len(pair) == 1:
            missing = "B" if "A" in pair else "A"
            raise InvalidAdapter(
                f"{path[:120]} has no lora_{missing}.",
                code="unpaired_factor",
                remedy="Upload the complete adapter_model.safetensors.",
                place=path[:120],
            )
    if not halves:
        raise InvalidAdapter(
            "The adapter has no LoRA factors.",
            code="no_effective_module",
            remedy="Upload the trained adapter_model.safetensors.",
            place="adapter_model.safetensors",
        )
    return {path: (pair["A"], pair["B"]) for path, pair in halves.items()}


def _check_factors(path: str, lora_a: torch.Tensor, lora_b: torch.Tensor, *, rank: int) -> None:
    if lora_a.ndim != 2 or lora_b.ndim != 2:
        raise AdapterShapeMismatch(
            f"The factors of {path[:120]} have shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)}, not matrices.",
            code="factor_not_a_matrix",
            remedy="Train on linear layers only.",
            place=path[:120],
        )
    if not lora_a.shape[0] == lora_b.shape[1] == rank:
        raise AdapterShapeMismatch(
            f"{path[:120]}: lora_A has {lora_a.shape[0]} rows, lora_B {lora_b.shape[1]} columns, "
            f"and adapter_config.json says rank {rank}.",
            code="rank_mismatch",
            remedy="Upload the adapter_config.json that belongs to these weights.",
            place=path[:120],
        )
    if not (torch.isfinite(lora_a).all() and torch.isfinite(lora_b).all()):
        raise InvalidAdapter(
            f"The factors of {path[:120]} hold NaN or infinite values.",
            code="non_finite_weights",
            remedy="The training diverged, or the file is damaged: upload a sound checkpoint.",
            place=path[:120],
        )


def _has_effect(factors: LoRAFactors) -> bool:
    """Whether some rank-one term has both of its halves."""
    both = (factors.lora_a != 0).any(dim=1) & (factors.lora_b != 0).any(dim=0)
    return factors.scaling != 0.0 and bool(both.any())
