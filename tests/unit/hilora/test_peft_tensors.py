from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import AdapterShapeMismatch, UnsupportedAdapterFeature
from hilora.peft_format import read_peft_adapter, with_base_names
from hilora.peft_tensors import FactorPair, is_targeted, pair_up, split_experts
from tests.builders.adapters import peft_config

EXPERTS = "model.layers.0.mlp.experts"


def stacked(path: str, *, rows: int = 6, num_in: int = 5, num_out: int = 7) -> dict[str, torch.Tensor]:
    name = f"base_model.model.{path}"
    return {f"{name}.lora_A.weight": torch.ones(rows, num_in), f"{name}.lora_B.weight": torch.ones(num_out, rows)}


class TestPairs:
    def test_an_embedding_is_a_layer_like_others(self):
        tensors = {
            "base_model.model.embed.lora_embedding_A": torch.ones(4, 30),
            "base_model.model.embed.lora_embedding_B": torch.ones(8, 4),
        }
        (pair,) = pair_up(tensors, target_parameters=())
        assert (pair.path, pair.lora_a.shape, pair.lora_b.shape) == ("embed", (4, 30), (8, 4))
        assert not pair.is_stacked

    def test_a_base_weight_of_a_targeted_layer_is_left_aside(self):
        name = "base_model.model.lm_head"
        tensors = {**stacked("lm_head"), f"{name}.base_layer.weight": torch.ones(7, 5)}
        assert [pair.path for pair in pair_up(tensors, target_parameters=())] == ["lm_head"]

    def test_a_base_weight_of_another_shape_is_a_changed_base(self):
        tensors = {**stacked("lm_head"), "base_model.model.lm_head.base_layer.weight": torch.ones(8, 5)}
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            pair_up(tensors, target_parameters=())
        assert caught.value.code == "unexpected_tensor"


class TestExpertParameters:
    def test_the_one_that_is_targeted(self):
        for parameter in ("gate_up_proj", "down_proj"):
            (pair,) = pair_up(stacked(EXPERTS), target_parameters=[f"experts.{parameter}"])
            assert (pair.path, pair.is_stacked) == (f"{EXPERTS}.{parameter}", True)

    def test_of_two_the_first_is_inside(self):
        tensors = stacked(EXPERTS) | stacked(f"{EXPERTS}.base_layer", num_in=9)
        found = {
            pair.path: pair.lora_a.shape[1]
            for pair in pair_up(tensors, target_parameters=["gate_up_proj", "down_proj"])
        }
        assert found == {f"{EXPERTS}.gate_up_proj": 9, f"{EXPERTS}.down_proj": 5}

    @pytest.mark.parametrize(
        ("targets", "paths"),
        [
            ([], [EXPERTS]),
            (["mlp.experts.up_proj"], [EXPERTS]),
            (["gate_up_proj", "down_proj"], [EXPERTS]),
            (["gate_up_proj"], [EXPERTS, f"{EXPERTS}.base_layer"]),
            (["gate_up_proj"], ["model.layers.0.mlp.base_layer"]),
        ],
    )
    def test_what_cannot_be_told_is_refused(self, targets, paths):
        tensors = {name: tensor for path in paths for name, tensor in stacked(path).items()}
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            pair_up(tensors, target_parameters=targets)
        assert caught.value.code == "unsupported_target_parameter"

    def test_a_name_counts_from_its_end(self):
        path = f"{EXPERTS}.down_proj"
        assert is_targeted(path, ["down_proj"])
        assert is_targeted(path, ["mlp.experts.down_proj"])
        assert is_targeted(path, [path])
        assert not is_targeted(path, ["own_proj", "layers.1.mlp.experts.down_proj"])


class TestSplitting:
    @given(num_experts=st.integers(1, 5), rank=st.integers(1, 4), num_in=st.integers(1, 6), num_out=st.integers(1, 6))
    def test_the_parts_rebuild_peft_s_update(self, num_experts, rank, num_in, num_out):
        a = torch.arange(num_experts * rank * num_in, dtype=torch.float64).reshape(-1, num_in) - 3
        b = torch.arange(num_out * rank * num_experts, dtype=torch.float64).reshape(num_out, -1) - 5
        parts = split_experts(FactorPair(path="m.experts.p", lora_a=a, lora_b=b, is_stacked=True), rank=rank)
        updates = torch.stack(
            [parts[f"m.experts.{idx}.p"][1] @ parts[f"m.experts.{idx}.p"][0] for idx in range(num_experts)]
        )
        a_ERD, b_ORE = a.reshape(num_experts, rank, num_in), b.reshape(num_out, rank, num_experts)
        assert torch.equal(updates, torch.einsum("ore,eri->eoi", b_ORE, a_ERD))

    @pytest.mark.parametrize(("rows", "columns"), [(6, 6), (8, 4), (4 * 5000, 4 * 5000)])
    def test_no_whole_number_of_experts(self, rows, columns):
        pair = FactorPair(
            path="m.experts.p", lora_a=torch.ones(rows, 1), lora_b=torch.ones(1, columns), is_stacked=True
        )
        with pytest.raises(AdapterShapeMismatch) as caught:
            split_experts(pair, rank=4)
        assert caught.value.code == "rank_mismatch"

    def test_patterns_count_per_parameter(self):
        config = peft_config(
            r=2,
            target_parameters=["gate_up_proj", "down_proj"],
            rank_pattern={r".*\.gate_up_proj": 3},
            target_modules=[],
        )
        tensors = stacked(f"{EXPERTS}.base_layer", rows=12, num_in=9) | stacked(EXPERTS, rows=8)
        adapter = read_peft_adapter(config=config, tensors=tensors)
        ranks = {path: factors.lora_rank for path, factors in adapter.modules.items()}
        assert ranks == {
            **{f"{EXPERTS}.{idx}.gate_up_proj": 3 for idx in range(4)},
            **{f"{EXPERTS}.{idx}.down_proj": 2 for idx in range(4)},
        }


class TestBaseNames:
    def _adapter(self, *paths: str) -> LoRAAdapter:
        factors = LoRAFactors(lora_a=torch.ones(1, 2), lora_b=torch.ones(2, 1), scaling=1.0)
        return LoRAAdapter(base_model=None, modules=dict.fromkeys(paths, factors))

    def test_older_names_are_translated_where_the_base_has_the_newer(self):
        old = "model.layers.0.block_sparse_moe"
        adapter = self._adapter(f"{old}.experts.3.w1", f"{old}.experts.3.w2", f"{old}.experts.3.w3", f"{old}.gate")
        new = [f"{EXPERTS}.3.gate_proj", f"{EXPERTS}.3.down_proj", f"{EXPERTS}.3.up_proj", "model.layers.0.mlp.gate"]
        renamed = with_base_names(adapter, base_modules=dict.fromkeys(new, (2, 2)))
        assert list(renamed.modules) == new

    def test_names_that_the_base_has_or_nobody_knows_stay(self):
        paths = ["model.layers.0.block_sparse_moe.gate", "experts.0.w9", "elsewhere.experts.0.w1"]
        renamed = with_base_names(self._adapter(*paths), base_modules={paths[0]: (2, 2)})
        assert list(renamed.modules) == paths

    def test_one_module_under_two_names_is_not_merged(self):
        old, new = "model.layers.0.block_sparse_moe.experts.3.w1", f"{EXPERTS}.3.gate_proj"
        renamed = with_base_names(self._adapter(old, new), base_modules={new: (2, 2)})
        assert set(renamed.modules) == {old, new}
