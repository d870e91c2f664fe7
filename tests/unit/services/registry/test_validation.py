"""Adapters on every kind of layer pass the registry's checks, and those that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hilora.errors import AdapterShapeMismatch, InvalidAdapter
from services.registry.infra.base_model import TransformersBaseModel
from services.registry.infra.safetensors_reader import HardenedSafetensorsReader
from services.registry.validation import AdapterValidator, ValidationLimits
from tests.builders.models import make_model
from tests.builders.peft_folders import RANK, train_adapter

_EXPERT_TARGETS = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"]}
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transposed linear layers": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "fused linear layers": ("phi3", {"target_modules": "all-linear"}),
    "stacked experts": ("mixtral", _EXPERT_TARGETS),
    "stacked experts and a shared one": ("qwen2_moe", {**_EXPERT_TARGETS, "target_modules": ["shared_expert.up_proj"]}),
    "converted experts": ("qwen3_moe", {"target_modules": ["gate_proj", "up_proj", "down_proj"]}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps({"text": f"sample {idx}"}) + "\n" for idx in range(5)))
    return folder


def _validator(tmp_path: Path, architecture: str, *, max_lora_rank: int = 2 * RANK) -> AdapterValidator:
    make_model(architecture).config.save_pretrained(tmp_path / "base")
    return AdapterValidator(
        reader=HardenedSafetensorsReader(),
        base=TransformersBaseModel(str(tmp_path / "base"), name="base", cache_folder=tmp_path / "cache"),
        limits=ValidationLimits(max_lora_rank=max_lora_rank, max_eager_bytes=1 << 20),
    )


@pytest.mark.parametrize("case", _CASES)
def test_what_peft_trained_is_accepted(case: str, folder: Path, tmp_path: Path) -> None:
    architecture, config = _CASES[case]
    train_adapter(folder, make_model(architecture), **config)
    validated = _validator(tmp_path, architecture).validate(folder)
    assert validated.adapter.lora_rank in {RANK, 2 * RANK}


class TestStackedExperts:
    def test_the_cap_counts_an_expert_s_rank(self, folder, tmp_path) -> None:
        train_adapter(folder, make_model("mixtral"), **_EXPERT_TARGETS)
        _validator(tmp_path, "mixtral", max_lora_rank=RANK).check_upload(folder)
        with pytest.raises(AdapterShapeMismatch) as caught:
            _validator(tmp_path, "mixtral", max_lora_rank=RANK - 1).check_upload(folder)
        assert caught.value.code == "rank_too_large"

    def test_more_experts_than_the_base_has(self, folder, tmp_path) -> None:
        train_adapter(folder, make_model("mixtral", num_local_experts=8), **_EXPERT_TARGETS)
        with pytest.raises(InvalidAdapter) as caught:
            _validator(tmp_path, "mixtral").validate(folder)
        assert caught.value.code in {"unknown_target_module", "adapter_shape_mismatch"}


def test_a_vocabulary_that_was_resized_is_another_base(folder: Path, tmp_path: Path) -> None:
    train_adapter(folder, make_model(vocab_size=104), target_modules=["embed_tokens"])
    with pytest.raises(AdapterShapeMismatch):
        _validator(tmp_path, "llama").validate(folder)


def test_a_copy_of_the_base_s_weight_does_not_count_as_a_rank(folder: Path, tmp_path: Path) -> None:
    train_adapter(folder, make_model(), target_modules=["lm_head"])
    weights = folder / "adapter_model.safetensors"
    assert "base_model.model.lm_head.base_layer.weight" in load_file(weights)
    _validator(tmp_path, "llama", max_lora_rank=RANK).validate(folder)
    tensors = load_file(weights) | {"base_model.model.model.norm.base_layer.weight": torch.ones(32)}
    save_file(tensors, weights)
    with pytest.raises(InvalidAdapter) as caught:
        _validator(tmp_path, "llama").validate(folder)
    assert caught.value.code == "unexpected_tensor"
