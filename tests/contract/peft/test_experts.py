"""Adapters on the experts of a mixture: every way in which PEFT writes them, against PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builders.adapters import peft_config
from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import EXPERT_ARCHITECTURES, load_tiny, make_model
from tests.builders.peft_folders import (
    RANK,
    components_for,
    full_plan,
    loaded_by_peft,
    read_for,
    train_adapter,
)

_PARAMETERS = {
    "both": {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "gate_up": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
    "down": {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
    "one_layer": {"target_modules": [], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]},
    "router": {"target_modules": ["v_proj"], "target_parameters": ["gate.weight"]},
    "rank_pattern": {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "rank_pattern": {r".*\.gate_up_proj": 2},
        "alpha_pattern": {r".*\.down_proj": 2},
    },
}


def _assert_engine_equals_peft(folder: Path, architecture: str) -> None:
    adapter = components_for(folder, make_model(architecture))
    engine = make_engine(
        load_tiny(architecture, dtype=torch.float64),
        InMemoryComponentSource({"experts": adapter}),
        max_num_batched_tokens=16,
    )
    recorder = LogitRecorder(engine)
    # A request without adapters first: tokens of both choose the same experts in the same steps.
    prompts = {"base": random_prompt(9), "experts": random_prompt(21, 1)}
    done = run_prompts(engine, prompts, {"experts": full_plan("experts", adapter)}, max_tokens=4)
    for name, prompt in prompts.items():
        model = make_model(architecture, dtype=torch.float64)
        reference = model if name == "base" else loaded_by_peft(folder, model)
        expected = full_forward_logits(reference, prompt, done[name].token_ids)
        assert_close(recorder.of(name), expected)
        assert done[name].token_ids == expected.argmax(dim=-1).tolist()


@pytest.mark.parametrize("architecture", EXPERT_ARCHITECTURES)
@pytest.mark.parametrize("variant", _PARAMETERS)
def test_target_parameters(variant: str, architecture: str, tmp_path: Path) -> None:
    train_adapter(tmp_path, make_model(architecture, dtype=torch.float64), **_PARAMETERS[variant])
    _assert_engine_equals_peft(tmp_path, architecture)


_CLASSIC = {
    "mixtral": ("model.layers.{layer}.block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("model.layers.{layer}.mlp", ("gate_proj", "up_proj", "down_proj")),
}
_SHAPES = {"mixtral": (32, 48), "qwen3_moe": (32, 24)}


def _write_classic(folder: Path, architecture: str) -> None:
    """A checkpoint from the time when each expert had three linear layers of its own, and the router was one too."""
    parent, names = _CLASSIC[architecture]
    hidden, inner = _SHAPES[architecture]
    widths = dict(zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True))
    shapes = {}
    for layer in range(2):
        path = parent.format(layer=layer)
        shapes[f"{path}.gate"] = (4, hidden)
        shapes[f"model.layers.{layer}.self_attn.q_proj"] = (32, 32)
        shapes |= {f"{path}.experts.{idx}.{name}": widths[name] for idx in range(4) for name in names}
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for path, (num_out, num_in) in shapes.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(RANK, num_in, generator=generator) * 0.2
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(num_out, RANK, generator=generator) * 0.2
    folder.mkdir(exist_ok=True)
    config = peft_config(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=["q_proj", "gate", *names])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", _CLASSIC)
class TestClassicCheckpoints:
    def test_they_compute_what_peft_makes_of_them(self, architecture: str, tmp_path: Path) -> None:
        _write_classic(tmp_path, architecture)
        _assert_engine_equals_peft(tmp_path, architecture)

    def test_each_experts_layer_keeps_its_own_rank(self, architecture: str, tmp_path: Path) -> None:
        """PEFT fuses gate and up to twice the rank when it loads them; gating and budgets count what was trained."""
        _write_classic(tmp_path, architecture)
        adapter = read_for(tmp_path, make_model(architecture))
        assert {factors.lora_rank for factors in adapter.modules.values()} == {RANK}
        assert "model.layers.1.mlp.experts.3.up_proj" in adapter.modules
        assert "model.layers.0.mlp.gate" in adapter.modules


def test_a_saved_fusion_is_the_same_adapter(tmp_path: Path) -> None:
    """PEFT turns classic target names into stacked parameters of twice the rank; both forms are read."""
    train_adapter(tmp_path, make_model("mixtral", dtype=torch.float64), target_modules=["w1", "w2", "w3"])
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert any(name.endswith("experts.base_layer.lora_A.weight") for name in names)
    adapter = read_for(tmp_path, make_model("mixtral"))
    assert adapter.modules["model.layers.0.mlp.experts.0.gate_up_proj"].lora_rank == 2 * RANK
    assert adapter.modules["model.layers.0.mlp.experts.0.down_proj"].lora_rank == RANK
    _assert_engine_equals_peft(tmp_path, "mixtral")
