"""The workload's adapters as folders in PEFT's format, for peers that read them from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from hilora.adapter import DecomposedAdapter


def write_peft_folders(adapters: Mapping[str, DecomposedAdapter], folder: Path) -> list[Path]:
    """One folder per adapter, in the order given; scaling is 1, as in the components."""
    written: list[Path] = []
    for name, adapter in adapters.items():
        target = folder / name
        target.mkdir(parents=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": adapter.lora_rank,
            "lora_alpha": adapter.lora_rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({path.rpartition(".")[2] for path in adapter.modules}),
        }
        (target / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for path, rocs in adapter.modules.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = rocs.a_RD.contiguous()
            tensors[f"base_model.model.{path}.lora_B.weight"] = rocs.b_RO.T.contiguous()
        save_file(tensors, target / "adapter_model.safetensors")
        written.append(target)
    return written
