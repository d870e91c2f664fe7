"""Adapters that the real PEFT wrote, as PEFT loads them and as we read them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hilora.adapter import DecomposedAdapter, LoRAAdapter, RocBasis
from hilora.decomposition import decompose
from hilora.peft_format import check_against_base, read_peft_adapter, with_base_names
from hilora.routing_plan import GateParameters, RocBudget, RoutingPlan
from hilora.target_layer import target_features

RANK = 4


def train_adapter(folder: Path, model: torch.nn.Module, *, seed: int = 0, **config: Any) -> None:
    """Wrap the model by PEFT, give the factors random values, save them. The model is spent afterwards."""
    import peft

    settings = {"r": RANK, "lora_alpha": 2 * RANK, "task_type": "CAUSAL_LM", **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on saved embeddings and on Conv1D; both are meant
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    # Values that float32 holds exactly: what is read back is what was saved, whatever the type.
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        wrapped.save_pretrained(folder)


def loaded_by_peft(folder: Path, model: torch.nn.Module) -> Any:
    """The oracle: PEFT with the folder over the given base."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()


def read_for(folder: Path, model: torch.nn.Module) -> LoRAAdapter:
    """The folder as the registry reads it for a base."""
    modules = target_features(model)
    adapter = with_base_names(
        read_peft_adapter(
            config=json.loads((folder / "adapter_config.json").read_text()),
            tensors=load_file(folder / "adapter_model.safetensors"),
        ),
        base_modules=modules,
    )
    check_against_base(adapter, base_modules=modules)
    return adapter


def components_for(folder: Path, model: torch.nn.Module, basis: RocBasis = RocBasis.TRAINED) -> DecomposedAdapter:
    """The folder's rank-one components."""
    return decompose(read_for(folder, model), basis=basis)


def full_plan(adapter_id: str, adapter: DecomposedAdapter) -> RoutingPlan:
    """One adapter with its full budget: what PEFT computes."""
    rank = adapter.lora_rank
    budget = RocBudget(adapter_id=adapter_id, adapter_name=adapter_id, lora_rank=rank, num_rocs=rank)
    return RoutingPlan(budgets=(budget,), gate=GateParameters(basis=adapter.basis))
