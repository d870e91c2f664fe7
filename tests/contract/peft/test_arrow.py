"""Rule `arrow` is PEFT's Arrow: the same adapters, the same tokens, the same logits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hilora.adapter import RocBasis
from hilora.routing_plan import GateRule
from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.gates import make_adaptive_plan
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import load_tiny, make_model
from tests.builders.peft_folders import RANK, components_for, train_adapter

_TARGETS = ["q_proj", "v_proj", "down_proj"]
_NUM_ADAPTERS = 4
# The singular basis is stored in float32, and PEFT finds its prototypes in float32.
_TOLERANCE = 2e-5


def _folders(folder: Path, *, lora_alpha: int = RANK) -> list[Path]:
    """Adapters with one strong direction each: PEFT's power iteration stops after fifteen rounds, found or not."""
    folders = [folder / f"adapter-{seed}" for seed in range(_NUM_ADAPTERS)]
    for seed, path in enumerate(folders):
        train_adapter(path, make_model(), seed=seed, target_modules=_TARGETS, lora_alpha=lora_alpha)
        tensors = load_file(path / "adapter_model.safetensors")
        strength_R1 = torch.tensor([1.0, 0.1, 0.08, 0.05])[:, None]
        scaled = {name: tensor * strength_R1 if "lora_A" in name else tensor for name, tensor in tensors.items()}
        save_file(scaled, path / "adapter_model.safetensors")
    return folders


def _by_peft(folders: list[Path], *, top_k: int, temperature: float) -> Any:
    from peft import ArrowConfig, create_arrow_model

    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_arrow_model(
            base_model=make_model(dtype=torch.float64),
            task_specific_adapter_paths=[str(path) for path in folders],
            arrow_config=config,
        ).eval()


@pytest.mark.parametrize(("top_k", "temperature"), [(1, 1.0), (2, 0.3), (3, 1.0), (_NUM_ADAPTERS, 2.0)])
def test_logits_equal_pefts_arrow(top_k: int, temperature: float, tmp_path: Path) -> None:
    folders = _folders(tmp_path, lora_alpha=2 * RANK)
    adapters = {path.name: components_for(path, make_model(), RocBasis.SVD) for path in folders}
    engine = make_engine(load_tiny(dtype=torch.float64), InMemoryComponentSource(adapters), max_num_batched_tokens=16)
    recorder = LogitRecorder(engine)
    prompts = {"arrow": random_prompt(21), "base": random_prompt(9)}
    plan = make_adaptive_plan(
        GateRule.ARROW, [(name, RANK, 1.0) for name in adapters], top_k=top_k, temperature=temperature
    )
    done = run_prompts(engine, prompts, {"arrow": plan}, max_tokens=4)
    expected = full_forward_logits(
        _by_peft(folders, top_k=top_k, temperature=temperature), prompts["arrow"], done["arrow"].token_ids
    )
    assert_close(recorder.of("arrow"), expected, _TOLERANCE)
    base = full_forward_logits(make_model(dtype=torch.float64), prompts["arrow"], done["arrow"].token_ids)
    assert (expected - base).abs().max() > 1e-2 * base.abs().max()
