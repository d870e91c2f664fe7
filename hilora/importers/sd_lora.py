"""SD-LoRA (arXiv 2501.13198): continual learning, in which each new task adds a direction and tunes all magnitudes.

    delta = sum_{i < t} s_i B_i A_i / (||B_i||_F ||A_i||_F) + s_t B_t A_t
    =>  A' = [A_0; ...; A_t],  B' = [s_0 B_0 / (||B_0|| ||A_0||), ..., s_t B_t],  scaling 1

The authors' code keeps pickled layers of a vision transformer; this is the same content in safetensors, with
`peft_type: SD_LORA` in the config:

    base_model.model.<path>.lora_A.<task>.weight     [r, D]     tasks count from 0, the last is the current one
    base_model.model.<path>.lora_B.<task>.weight     [O, r]
    scaling_factor                                   [1]        s_t, as the authors name it
    scaling_factor_prev                              [>= t]     s_0, s_1, ...; missing where there is one task

A module may have magnitudes of its own, `<path>.scaling_factor` and `<path>.scaling_factor_prev`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from hilora.finding import Refuse
from hilora.importers.protocol import ImportedAdapter, as_plain_lora, is_of_type
from hilora.peft_config import parse_peft_config
from hilora.peft_tensors import module_name, unexpected_tensor

FORMAT = "sd_lora"
_FACTOR_NAME = re.compile(r"(?P<path>.+)\.lora_(?P<part>[AB])\.(?P<task>\d{1,4})\.weight")
_MAGNITUDE_NAME = re.compile(r"(?:(?P<path>.+)\.)?scaling_factor(?P<prev>_prev)?")

Tasks = dict[int, dict[str, torch.Tensor]]


class SdLoraImporter:
    """See `AdapterImporter`."""

    def recognises(self, config: Mapping[str, object], tensor_names: Collection[str]) -> bool:
        """See `AdapterImporter.recognises`."""
        return is_of_type(config, "SD_LORA", "SDLORA") or "scaling_factor" in tensor_names

    def expand(
        self, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], refuse: Refuse
    ) -> ImportedAdapter:
        """See `AdapterImporter.expand`."""
        # The method has magnitudes instead of alpha, and tasks instead of one rank.
        plain = parse_peft_config(
            as_plain_lora(config, without={"lora_alpha", "r"}) | {"lora_alpha": 1, "r": 1}, refuse=refuse
        )
        tasks: dict[str, Tasks] = {}
        magnitudes: dict[tuple[str, bool], torch.Tensor] = {}
        for name, tensor in tensors.items():
            bare_name = module_name(name)
            factor, magnitude = _FACTOR_NAME.fullmatch(bare_name), _MAGNITUDE_NAME.fullmatch(bare_name)
            if factor is not None:
                tasks.setdefault(factor["path"], {}).setdefault(int(factor["task"]), {})[factor["part"]] = tensor
            elif magnitude is not None:
                magnitudes[magnitude["path"] or "", magnitude["prev"] is not None] = tensor
            else:
                refuse(unexpected_tensor(name))
        modules: dict[str, LoRAFactors] = {}
        for path, of_task in sorted(tasks.items()):
            strengths = _magnitudes_of(path, magnitudes, num_tasks=len(of_task))
            factors = _factors(path, of_task, strengths, refuse)
            if factors is not None:
                modules[path] = factors
        if not tasks:
            refuse(_incomplete("adapter_model.safetensors"))
        return ImportedAdapter(adapter=LoRAAdapter(base_model=plain.base_model, modules=modules), source_format=FORMAT)


def _magnitudes_of(
    path: str, magnitudes: Mapping[tuple[str, bool], torch.Tensor], *, num_tasks: int
) -> torch.Tensor | None:
    """`s_0 ... s_t` of a module, `[num_tasks]`; None if there are too few."""
    current = magnitudes.get((path, False), magnitudes.get(("", False)))
    earlier = magnitudes.get((path, True), magnitudes.get(("", True), torch.zeros(0)))
    if current is None or current.numel() != 1 or earlier.numel() < num_tasks - 1:
        return None
    flat = [part.reshape(-1).to(torch.float64) for part in (earlier, current)]
    return torch.cat([flat[0][: num_tasks - 1].to(flat[1].device), flat[1]])


def _factors(path: str, tasks: Tasks, magnitudes: torch.Tensor | None, refuse: Refuse) -> LoRAFactors | None:
    is_complete = sorted(tasks) == list(range(len(tasks))) and all(len(parts) == 2 for parts in tasks.values())
    if not is_complete or magnitudes is None:
        refuse(_incomplete(path))
        return None
    pairs = [(tasks[task]["A"].to(torch.float64), tasks[task]["B"].to(torch.float64)) for task in sorted(tasks)]
    is_sound = (
        all(a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] for a, b in pairs)
        and len({(a.shape[1], b.shape[0]) for a, b in pairs}) == 1
    )
    if not is_sound:
        refuse(
            AdapterShapeMismatch(
                f"The factors of {path[:120]} do not fit together: "
                + ", ".join(f"A {tuple(a.shape)} B {tuple(b.shape)}" for a, b in pairs[:8]),
                code="rank_mismatch",
                remedy="Upload all tensors of one SD-LoRA checkpoint.",
                place=path[:120],
            )
        )
        return None
    ups: list[torch.Tensor] = []
    for task, (a, b) in enumerate(pairs):
        is_current = task == len(pairs) - 1
        length = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
        # A direction of length 0 adds nothing, whatever its magnitude.
        direction = b if is_current else torch.where(length > 0, b / length, torch.zeros_like(b))
        ups.append(magnitudes[task] * direction)
    return LoRAFactors(lora_a=torch.cat([a for a, _ in pairs]), lora_b=torch.cat(ups, dim=1), scaling=1.0)


def _incomplete(place: str) -> InvalidAdapter:
    return InvalidAdapter(
        f"{place[:120]} lacks a task's lora_A or lora_B, or a magnitude.",
        code="unpaired_factor",
        remedy="Store tasks 0 to t as <path>.lora_A.<task>.weight and <path>.lora_B.<task>.weight, the magnitudes as "
        "scaling_factor [1] and scaling_factor_prev [t].",
        place=place[:120],
    )
