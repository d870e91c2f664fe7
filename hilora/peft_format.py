"""From a PEFT checkpoint to a `LoRAAdapter`.

The names of its tensors are known to `peft_tensors`, the fields of its config to `peft_config`; the rest of the system
sees module paths and factors only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import AdapterShapeMismatch, InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import Refuse, raise_at_once
from hilora.module_pattern import ModulePatterns, value_for
from hilora.peft_config import PeftLoraConfig, parse_peft_config
from hilora.peft_tensors import is_targeted, pair_up, split_experts

__all__ = [
    "PeftLoraConfig",
    "check_against_base",
    "check_values",
    "pair_factors",
    "parse_peft_config",
    "read_peft_adapter",
    "with_base_names",
]

_MAX_MODULES = 65_536
"""Of one adapter, each expert counted: a small file could stack millions, each with objects of its own in memory."""
_OLD_EXPERT_NAME = re.compile(r"(?P<experts>.*\.experts\.\d+)\.w(?P<number>[123])")
_OLD_EXPERT_LAYERS = {"1": "gate_proj", "2": "down_proj", "3": "up_proj"}


def read_peft_adapter(*, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> LoRAAdapter:
    """Pair up an adapter's factors, resolve each module's rank and scaling, and look at every value.

    Args:
        config: the content of `adapter_config.json`.
        tensors: the content of `adapter_model.safetensors`.

    Returns:
        The factors in their own dtype, by module path in alphabetical order; those of stacked experts as one module
        per expert, `<path>.<expert>.<parameter>`.

    Raises:
        UnsupportedAdapterFeature: see `parse_peft_config`; or `unexpected_tensor`, a tensor that is no LoRA factor;
            or `unsupported_dtype`; or `unsupported_target_parameter`; or `too_many_modules`.
        AdapterShapeMismatch: factors that are no matrices (`factor_not_a_matrix`), or whose ranks disagree with each
            other or with the config (`rank_mismatch`).
        InvalidAdapter: a factor without its partner (`unpaired_factor`) or named twice (`duplicate_factor`), values
            that are not finite (`non_finite_weights`), nothing that changes the base (`no_effective_module`),
            `invalid_adapter_config`.
    """
    adapter = pair_factors(config=config, tensors=tensors)
    check_values(adapter)
    return adapter


def pair_factors(
    *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse = raise_at_once
) -> LoRAAdapter:
    """`read_peft_adapter` without a look at the values: meta tensors will do.

    Args:
        config: the content of `adapter_config.json`.
        tensors: the content of `adapter_model.safetensors`.
        refuse: called with each reason for a refusal; where it returns, the module it is about is left out.
    """
    parsed = parse_peft_config(config, refuse=refuse)
    rank_patterns = ModulePatterns(parsed.rank_pattern, place="rank_pattern", refuse=refuse)
    alpha_patterns = ModulePatterns(parsed.alpha_pattern, place="alpha_pattern", refuse=refuse)
    targeted_names = frozenset(parsed.target_parameters)
    modules: dict[str, LoRAFactors] = {}
    for pair in pair_up(tensors, target_parameters=parsed.target_parameters, refuse=refuse):
        parameter_path = f"{pair.path}.weight"
        # Patterns are matched with what PEFT wrapped: a parameter's path, or a layer's.
        name = parameter_path if is_targeted(parameter_path, targeted_names) else pair.path
        rank = value_for(name, patterns=rank_patterns, values=parsed.rank_pattern, default=parsed.rank)
        alpha = value_for(name, patterns=alpha_patterns, values=parsed.alpha_pattern, default=parsed.alpha)
        scaling = parsed.scaling_of(rank=rank, alpha=alpha)
        if len(modules) + (pair.lora_a.shape[0] // rank if pair.is_stacked else 1) > _MAX_MODULES:
            refuse(_too_many_modules())
            break
        factors = {pair.path: (pair.lora_a, pair.lora_b)}
        if pair.is_stacked:
            factors = split_experts(pair, rank=rank, refuse=refuse)
        for path, (lora_a, lora_b) in factors.items():
            if _has_rank(path, lora_a, lora_b, rank=rank, refuse=refuse):
                modules[path] = LoRAFactors(lora_a=lora_a, lora_b=lora_b, scaling=scaling)
    return LoRAAdapter(base_model=parsed.base_model, modules=modules)


def check_values(adapter: LoRAAdapter, *, refuse: Refuse = raise_at_once) -> None:
    """Make sure that every factor is finite and that something changes the base.

    Args:
        adapter: with its values.
        refuse: called with each reason for a refusal.

    Raises:
        InvalidAdapter: `non_finite_weights`, `no_effective_module`.
    """
    for path, factors in adapter.modules.items():
        if not (torch.isfinite(factors.lora_a).all() and torch.isfinite(factors.lora_b).all()):
            refuse(
                InvalidAdapter(
                    f"The factors of {path[:120]} hold NaN or infinite values.",
                    code="non_finite_weights",
                    remedy="The training diverged, or the file is damaged: upload a sound checkpoint.",
                    place=path[:120],
                )
            )
    if adapter.modules and not any(_has_effect(module) for module in adapter.modules.values()):
        refuse(
            InvalidAdapter(
                f"None of the adapter's {len(adapter.modules)} modules changes anything: every update is zero.",
                code="no_effective_module",
                remedy="Upload the trained weights; an untrained LoRA has a zero lora_B.",
                place="adapter_model.safetensors",
            )
        )


def with_base_names(adapter: LoRAAdapter, *, base_modules: Mapping[str, tuple[int, int]]) -> LoRAAdapter:
    """The adapter with today's names for modules that its training script knew by older ones.

    Mixtral's experts were `block_sparse_moe.experts.<n>.w1`, `w2` and `w3` once; they are `gate_proj`, `down_proj` and
    `up_proj` of `mlp.experts.<n>` here. A language model that was trained inside one for images as well stands under
    `language_model`, and one without its output layer lacks the leading `model`. A name that the base has is left as it
    is, and so is one that no form of is known: `check_against_base` refuses it.

    Args:
        adapter: as read.
        base_modules: the base's layers, by module path.
    """
    renamed: dict[str, LoRAFactors] = {}
    for path, factors in adapter.modules.items():
        current = next((name for name in _names_of(path) if name in base_modules), path)
        # Two names for one module: the older one is left to be refused, rather than one update dropped.
        is_taken = current != path and (current in adapter.modules or current in renamed)
        renamed[path if is_taken else current] = factors
    return LoRAAdapter(base_model=adapter.base_model, modules=renamed)


def _names_of(path: str) -> list[str]:
    """A module's own name, and those it has where the model stands inside another or alone."""
    current = _current_name(path)
    language = current.replace("language_model.", "", 1)
    return [path, current, language, f"model.{language}", f"model.{language.removeprefix('model.model.')}"]


def _current_name(path: str) -> str:
    path = path.replace(".block_sparse_moe.", ".mlp.")
    match = _OLD_EXPERT_NAME.fullmatch(path)
    return path if match is None else f"{match['experts']}.{_OLD_EXPERT_LAYERS[match['number']]}"


def check_against_base(
    adapter: LoRAAdapter, *, base_modules: Mapping[str, tuple[int, int]], refuse: Refuse = raise_at_once
) -> None:
    """Make sure that every module exists in the served base and that the factors fit it.

    Args:
        adapter: as read; meta tensors will do.
        base_modules: `(out features, in features)` of the base's layers, by module path: `target_features` lists them.
        refuse: called with each reason for a refusal.

    Raises:
        InvalidAdapter: `unknown_target_module`.
        AdapterShapeMismatch: a factor that does not fit its layer.
    """
    for path, factors in adapter.modules.items():
        if path not in base_modules:
            refuse(
                InvalidAdapter(
                    f"The adapter targets {path[:120]}, which is no layer of the served base that can carry a LoRA.",
                    code="unknown_target_module",
                    remedy="Upload an adapter trained on the served base model, on its linear layers and word "
                    "embeddings; layers that look positions up by themselves carry none.",
                    place=path[:120],
                )
            )
            continue
        update = (int(factors.lora_b.shape[0]), int(factors.lora_a.shape[1]))
        if update != base_modules[path]:
            refuse(
                AdapterShapeMismatch(
                    f"The update of {path} is {update[0]} x {update[1]}, the base's layer "
                    f"{base_modules[path][0]} x {base_modules[path][1]}.",
                    remedy="Upload an adapter trained on the served base model.",
                    place=path,
                )
            )


def _has_rank(path: str, lora_a: torch.Tensor, lora_b: torch.Tensor, *, rank: int, refuse: Refuse) -> bool:
    if lora_a.shape[0] == lora_b.shape[1] == rank:
        return True
    refuse(
        AdapterShapeMismatch(
            f"{path[:120]}: lora_A has {lora_a.shape[0]} rows, lora_B {lora_b.shape[1]} columns, "
            f"and adapter_config.json says rank {rank}.",
            code="rank_mismatch",
            remedy="Upload the adapter_config.json that belongs to these weights.",
            place=path[:120],
        )
    )
    return False


def _too_many_modules() -> UnsupportedAdapterFeature:
    return UnsupportedAdapterFeature(
        f"The adapter has factors for more than {_MAX_MODULES} modules, each expert counted.",
        code="too_many_modules",
        remedy="Train on fewer layers or fewer experts.",
        place="adapter_model.safetensors",
    )


def _has_effect(factors: LoRAFactors) -> bool:
    """Whether some rank-one term has both of its halves."""
    both = (factors.lora_a != 0).any(dim=1) & (factors.lora_b != 0).any(dim=0)
    return factors.scaling != 0.0 and bool(both.any())
