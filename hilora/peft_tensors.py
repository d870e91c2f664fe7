"""The tensors of a PEFT checkpoint, paired up and told apart by what they belong to.

Shapes: R rank, D in-features, O out-features, E experts, V vocabulary.

    linear layer         <path>.lora_A.weight [R, D]           <path>.lora_B.weight [O, R]
    embedding            <path>.lora_embedding_A [R, V]        <path>.lora_embedding_B [O, R]
    parameter of stacked experts, at the path of the module that holds it
                         <path>.lora_A.weight [E R, D]         <path>.lora_B.weight [O, R E]
    a second such parameter of one module: PEFT wraps the wrapper, the one declared first is inside
                         <path>.base_layer.lora_A.weight ...

All stand under `base_model.model.`, or directly under the model's own names where a trainer stripped the prefix.
Files from before PEFT 0.5 and raw state dicts carry the adapter's name, `lora_A.default.weight`, and some leave
`.weight` out; distributed and compiled training leaves the names of its wrappers among the path's. With a targeted
embedding or output embedding PEFT also saves the base's own weight and bias, `<path>.base_layer.weight`; they are those
of the base we have, and left aside. Rows of a stacked A run over the ranks of expert 0 first; columns of a stacked B
over the experts of rank 0 first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from hilora.errors import AdapterShapeMismatch, InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import Refuse, raise_at_once

_FACTOR_NAME = re.compile(
    r"(?P<path>.+)\.lora_(?:(?P<factor>[AB])(?:\.(?!bias$)[\w-]+?)??(?:\.weight)?|"
    r"embedding_(?P<embedding>[AB])(?:\.(?!weight$)[\w-]+)?)"
)
_BASE_COPY_NAME = re.compile(r"(?P<path>.+)\.base_layer\.(?P<part>weight|bias)")
_PREFIX = re.compile(r"(?:module\.)?(?:base_model\.model\.)?")
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing insert before a name."""
_MAX_PATH_LENGTH = 256
"""No model nests deeper; matching a pattern costs a power of it."""
_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

_EXPERTS = "experts"
_EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
"""In the order in which models declare them, and therefore from the inside to the outside."""
_INNER = ".base_layer"
_MAX_EXPERTS = 4096
"""Of one layer. A file of a few megabytes could name millions, each with its own objects in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorPair:
    """The two factors of one layer or parameter as they stand in the file."""

    path: str
    """The module's path, or `<module path>.<parameter>` for stacked experts."""
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    is_stacked: bool
    """Whether it holds the factors of several experts."""


def pair_up(
    tensors: Mapping[str, torch.Tensor], *, target_parameters: Sequence[str], refuse: Refuse = raise_at_once
) -> list[FactorPair]:
    """Every A with its B.

    Args:
        tensors: the content of `adapter_model.safetensors`; meta tensors will do.
        target_parameters: as the adapter's config has them; they tell which parameter of the experts is meant.
        refuse: called with each reason for a refusal; where it returns, the tensors it is about are left out.

    Returns:
        The pairs in alphabetical order of their paths.

    Raises:
        UnsupportedAdapterFeature: `unexpected_tensor`, `unsupported_dtype`.
        AdapterShapeMismatch: `factor_not_a_matrix`.
        InvalidAdapter: `unpaired_factor`, `duplicate_factor`, `no_effective_module`.
    """
    targeted_names = frozenset(target_parameters)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    copies: dict[str, re.Match[str]] = {}
    for name, tensor in tensors.items():
        plain_name = module_name(name)
        match = _FACTOR_NAME.fullmatch(plain_name)
        copy = _BASE_COPY_NAME.fullmatch(plain_name)
        if match is None and copy is not None:
            copies[name] = copy
        elif match is None or len(match["path"]) > _MAX_PATH_LENGTH:
            refuse(unexpected_tensor(name))
        elif tensor.dtype not in _DTYPES:
            refuse(_wrong_dtype(name, tensor.dtype))
        else:
            factor = match["factor"] or match["embedding"]
            pair = halves.setdefault(match["path"], {})
            if factor in pair:
                refuse(_duplicate(name, factor, match["path"]))
            pair[factor] = tensor
    if not halves:
        refuse(_no_factors())
    for name, copy in copies.items():
        if not _is_copy_of_base(copy["part"], tensors[name], halves.get(copy["path"])):
            refuse(unexpected_tensor(name))
    pairs: list[FactorPair] = []
    for path, pair in halves.items():
        if len(pair) == 1:
            refuse(_unpaired(path, missing="B" if "A" in pair else "A"))
            continue
        found = _pair_of(path, pair, targeted_names, halves, refuse)
        if found is not None:
            pairs.append(found)
    return sorted(pairs, key=lambda pair: pair.path)


def module_name(tensor_name: str) -> str:
    """A tensor's name without what PEFT and wrappers of the model put around it."""
    return _PREFIX.sub("", _WRAPPERS.sub("", tensor_name), count=1)


def split_experts(
    pair: FactorPair, *, rank: int, refuse: Refuse = raise_at_once
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The factors of each expert, by module path; none where the refusal of a wrong stack returns.

    Args:
        pair: of a stacked parameter.
        rank: of one expert.
        refuse: called with the reason for a refusal.

    Raises:
        AdapterShapeMismatch: `rank_mismatch`, for factors that are no stack of that rank.
    """
    num_rows = pair.lora_a.shape[0]
    if num_rows % rank or pair.lora_b.shape[1] != num_rows or not 1 <= num_rows // rank <= _MAX_EXPERTS:
        refuse(
            AdapterShapeMismatch(
                f"{pair.path[:120]}: lora_A has {num_rows} rows, lora_B {pair.lora_b.shape[1]} columns; with rank "
                f"{rank} that is no number of experts up to {_MAX_EXPERTS}.",
                code="rank_mismatch",
                remedy="Upload the adapter_config.json that belongs to these weights.",
                place=pair.path[:120],
            )
        )
        return {}
    module_path, _, parameter = pair.path.rpartition(".")
    num_experts = num_rows // rank
    a_ERD = pair.lora_a.reshape(num_experts, rank, -1)
    b_ORE = pair.lora_b.reshape(-1, rank, num_experts)
    return {
        f"{module_path}.{expert_idx}.{parameter}": (a_ERD[expert_idx], b_ORE[..., expert_idx].contiguous())
        for expert_idx in range(num_experts)
    }


def _pair_of(
    path: str,
    pair: Mapping[str, torch.Tensor],
    target_parameters: Collection[str],
    halves: Mapping[str, Mapping[str, torch.Tensor]],
    refuse: Refuse,
) -> FactorPair | None:
    lora_a, lora_b = pair["A"], pair["B"]
    if lora_a.ndim != 2 or lora_b.ndim != 2:
        refuse(
            AdapterShapeMismatch(
                f"The factors of {path[:120]} have shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)}, "
                "not matrices.",
                code="factor_not_a_matrix",
                remedy="Train on linear layers, embeddings or experts only; a file of empty tensors was saved from "
                "sharded training before its parts were gathered.",
                place=path[:120],
            )
        )
        return None
    holder = path.removesuffix(_INNER)
    parameter = None
    if holder.rpartition(".")[2] == _EXPERTS:
        targeted = [name for name in _EXPERT_PARAMETERS if is_targeted(f"{holder}.{name}", target_parameters)]
        is_inner, has_inner = holder != path, f"{holder}{_INNER}" in halves
        if len(targeted) == (2 if is_inner or has_inner else 1):
            parameter = targeted[0 if is_inner else -1]
    if parameter is None and (holder != path or holder.rpartition(".")[2] == _EXPERTS):
        refuse(
            UnsupportedAdapterFeature(
                f"It cannot be told which parameter the factors of {path[:120]} belong to.",
                code="unsupported_target_parameter",
                remedy="Name the experts' gate_up_proj and down_proj in target_parameters, as PEFT does.",
                place=path[:120],
            )
        )
        return None
    return FactorPair(
        path=path if parameter is None else f"{holder}.{parameter}",
        lora_a=lora_a,
        lora_b=lora_b,
        is_stacked=parameter is not None,
    )


def is_targeted(path: str, names: Collection[str]) -> bool:
    """Whether PEFT takes a parameter, or a module, for one of those named: by its whole path, or by the end of it.

    Args:
        path: of the parameter or module.
        names: a set, where there may be many.
    """
    return path in names or any(path[at + 1 :] in names for at, character in enumerate(path) if character == ".")


def _is_copy_of_base(part: str, tensor: torch.Tensor, pair: Mapping[str, torch.Tensor] | None) -> bool:
    """A layer's own weights may be left aside if the adapter targets the layer and they have its shape."""
    if pair is None or len(pair) != 2 or any(factor.ndim != 2 for factor in pair.values()):
        return False
    num_out, num_in = pair["B"].shape[0], pair["A"].shape[-1]
    shapes = {(num_out,)} if part == "bias" else {(num_out, num_in), (num_in, num_out)}
    return tuple(tensor.shape) in shapes


def unexpected_tensor(name: str) -> UnsupportedAdapterFeature:
    """The refusal of a tensor that is no LoRA factor."""
    return UnsupportedAdapterFeature(
        f"The tensor {name[:160]!r} is not a factor of a LoRA on a layer that can carry one.",
        code="unexpected_tensor",
        remedy="Train on linear layers, embeddings or experts only, without biases, convolutions or saved modules.",
        place=name[:160],
    )


def _wrong_dtype(name: str, dtype: torch.dtype) -> UnsupportedAdapterFeature:
    return UnsupportedAdapterFeature(
        f"The tensor {name[:160]!r} has the type {dtype}.",
        code="unsupported_dtype",
        remedy="Save the factors as float32, float16 or bfloat16.",
        place=name[:160],
    )


def _duplicate(name: str, factor: str, path: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"lora_{factor} of {path[:120]} stands in the file twice.",
        code="duplicate_factor",
        remedy="Save one adapter alone, by PEFT's save_pretrained(folder, selected_adapters=[name]).",
        place=name[:160],
    )


def _unpaired(path: str, *, missing: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{path[:120]} has no lora_{missing}.",
        code="unpaired_factor",
        remedy="Upload the complete adapter_model.safetensors.",
        place=path[:120],
    )


def _no_factors() -> InvalidAdapter:
    return InvalidAdapter(
        "The adapter has no LoRA factors.",
        code="no_effective_module",
        remedy="Upload the trained adapter_model.safetensors.",
        place="adapter_model.safetensors",
    )
