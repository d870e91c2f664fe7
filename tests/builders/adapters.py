"""Random adapters and PEFT folders, small enough for a test and real enough to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from hilora.adapter import LoRAAdapter, LoRAFactors

Q_PROJ = "model.layers.0.self_attn.q_proj"
UP_PROJ = "model.layers.0.mlp.up_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"

MODULE_SHAPES: Mapping[str, tuple[int, int]] = {Q_PROJ: (12, 12), UP_PROJ: (20, 12), DOWN_PROJ: (12, 20)}
"""(out, in) features of the linear layers that the builders target."""


def random_factors(*, out_features: int, in_features: int, rank: int, seed: int, scaling: float = 0.5) -> LoRAFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoRAFactors(
        lora_a=torch.randn(rank, in_features, generator=generator) / in_features**0.5,
        lora_b=torch.randn(out_features, rank, generator=generator) / rank**0.5,
        scaling=scaling,
    )


def random_adapter(
    *, rank: int = 4, seed: int = 0, scaling: float = 0.5, shapes: Mapping[str, tuple[int, int]] = MODULE_SHAPES
) -> LoRAAdapter:
    return LoRAAdapter(
        base_model="tiny",
        modules={
            path: random_factors(
                out_features=out_features, in_features=in_features, rank=rank, seed=seed * 101 + place, scaling=scaling
            )
            for place, (path, (out_features, in_features)) in enumerate(shapes.items())
        },
    )


def peft_config(**changes: object) -> dict[str, object]:
    """The content of an `adapter_config.json` as PEFT writes it for a plain LoRA."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **changes,
    }


def peft_tensors(adapter: LoRAAdapter, *, infix: str = "") -> dict[str, torch.Tensor]:
    """The factors under PEFT's names; `infix` is `.default` in some old files."""
    tensors: dict[str, torch.Tensor] = {}
    for path, factors in adapter.modules.items():
        tensors[f"base_model.model.{path}.lora_A{infix}.weight"] = factors.lora_a.contiguous()
        tensors[f"base_model.model.{path}.lora_B{infix}.weight"] = factors.lora_b.contiguous()
    return tensors


def write_peft_folder(folder: Path, *, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder
