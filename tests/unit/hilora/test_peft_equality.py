"""What we read out of a PEFT folder computes what PEFT computes, for folders that PEFT itself wrote."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from hilora.adapter import LoRAAdapter, RocBasis
from hilora.decomposition import decompose, delta_weight
from hilora.errors import UnsupportedAdapterFeature
from hilora.peft_format import check_against_base, read_peft_adapter
from hilora.reference import reference_forward
from hilora.sequence_routing import explicit_decision
from hilora.token_gating import gate_rocs, module_gate


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(10, 10)
        self.up_proj = torch.nn.Linear(10, 14, bias=False)
        self.down_proj = torch.nn.Linear(14, 10, bias=False)

    def forward(self, x):
        return x + self.down_proj(torch.tanh(self.up_proj(self.q_proj(x))))


class TinyModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class TransposedModel(torch.nn.Module):
    """Stores its weight as (in, out), as GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c_fc = Conv1D(14, 10)

    def forward(self, x):
        return self.c_fc(x)


TARGETS = ["q_proj", "up_proj", "down_proj"]
VARIANTS = {
    "plain": {"target_modules": TARGETS},
    "rslora": {"target_modules": TARGETS, "use_rslora": True},
    "rank_pattern": {"target_modules": TARGETS, "rank_pattern": {"q_proj": 2, r"layers\.1\.up_proj": 6}},
    "alpha_pattern": {"target_modules": TARGETS, "alpha_pattern": {"layers.0.down_proj": 3, "down_proj": 5}},
    "all_at_once": {
        "target_modules": r".*\.(q|down)_proj",
        "use_rslora": True,
        "rank_pattern": {"^layers.1.q_proj": 3},
        "alpha_pattern": {"(q|k)_proj": 1},
    },
    "gaussian": {"target_modules": TARGETS, "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": TARGETS, "init_lora_weights": "orthogonal"},
}


def write_trained_adapter(folder, base: torch.nn.Module, **fields: object) -> None:
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, **fields))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)


def loaded_by_peft(folder, base: torch.nn.Module) -> peft.PeftModel:
    """The oracle is what PEFT loads, not what it trained: saving sorts the patterns, and the first match decides."""
    return peft.PeftModel.from_pretrained(base, folder).eval()


def read_back(folder) -> LoRAAdapter:
    config = json.loads((folder / "adapter_config.json").read_text())
    return read_peft_adapter(config=config, tensors=load_file(folder / "adapter_model.safetensors"))


def full_budget_forward(base: TinyModel, adapter: LoRAAdapter, x_TD: torch.Tensor, *, basis: RocBasis) -> torch.Tensor:
    """The base with each wrapped linear followed by shrink, gate, expand under the plan of a named adapter."""
    decomposed = decompose(adapter, basis=basis)
    plan = explicit_decision(
        adapter_id="a@1", adapter_name="a", lora_rank=decomposed.lora_rank, catalog_generation=0
    ).plan

    def add_rocs(rocs):
        def hook(_module, inputs, output):
            h_TR = inputs[0] @ rocs.a_RD.T
            gate = module_gate(plan, num_rocs=[rocs.num_rocs])
            return output + (gate_rocs(h_TR, gate=gate) * h_TR) @ rocs.b_RO

        return hook

    handles = [
        base.get_submodule(path).register_forward_hook(add_rocs(rocs)) for path, rocs in decomposed.modules.items()
    ]
    try:
        return base(x_TD)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("variant", VARIANTS)
class TestVariants:
    def test_updates_are_peft_s(self, variant, tmp_path):
        write_trained_adapter(tmp_path, TinyModel(), **VARIANTS[variant])
        model, adapter = loaded_by_peft(tmp_path, TinyModel()), read_back(tmp_path)
        wrapped = {
            name.removeprefix("base_model.model."): module
            for name, module in model.named_modules()
            if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight")
        }
        assert set(adapter.modules) == set(wrapped)
        check_against_base(adapter, base_modules={path: tuple(module.weight.shape) for path, module in wrapped.items()})
        for basis in RocBasis:
            for path, rocs in decompose(adapter, basis=basis).modules.items():
                expected = wrapped[path].get_delta_weight("default")
                torch.testing.assert_close(delta_weight(rocs), expected, rtol=1e-5, atol=1e-5)

    def test_one_candidate_with_its_full_budget_is_peft_s_output(self, variant, tmp_path):
        write_trained_adapter(tmp_path, TinyModel(), **VARIANTS[variant])
        model, adapter = loaded_by_peft(tmp_path, TinyModel()), read_back(tmp_path)
        x_TD = torch.randn(7, 10, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected = model(x_TD)
            for basis in RocBasis:
                actual = full_budget_forward(TinyModel(), adapter, x_TD, basis=basis)
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class TestTransposedWeights:
    def test_fan_in_fan_out_changes_nothing_about_the_factors(self, tmp_path):
        write_trained_adapter(tmp_path, TransposedModel(), target_modules=["c_fc"], fan_in_fan_out=True)
        model = loaded_by_peft(tmp_path, TransposedModel())
        rocs = decompose(read_back(tmp_path), basis=RocBasis.SVD).modules["c_fc"]
        base = TransposedModel().c_fc
        x_TD = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
        plan = explicit_decision(adapter_id="a@1", adapter_name="a", lora_rank=4, catalog_generation=0).plan
        with torch.no_grad():
            actual = reference_forward(
                x_TD,
                w0_OD=base.weight.T,
                bias_O=base.bias,
                candidates=[rocs],
                budgets=[4],
                weights=[1.0],
                gate=plan.gate,
            )
            torch.testing.assert_close(actual, model(x_TD), rtol=1e-5, atol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize(
        "fields",
        [
            {"use_dora": True},
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": "olora"},
            {"bias": "all"},
            {"lora_bias": True},
            {"modules_to_save": ["down_proj"]},
        ],
        ids=lambda fields: "-".join(fields),
    )
    def test_folders_that_peft_wrote_with_other_features(self, fields, tmp_path):
        write_trained_adapter(tmp_path, TinyModel(), target_modules=["q_proj"], **fields)
        with pytest.raises(UnsupportedAdapterFeature):
            read_back(tmp_path)
