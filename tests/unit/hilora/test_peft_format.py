from __future__ import annotations

import pytest
import torch

from hilora.errors import AdapterShapeMismatch, InvalidAdapter, UnsupportedAdapterFeature
from hilora.peft_format import check_against_base, read_peft_adapter
from tests.builders.adapters import (
    DOWN_PROJ,
    MODULE_SHAPES,
    Q_PROJ,
    UP_PROJ,
    peft_config,
    peft_tensors,
    random_adapter,
)


def tensors_with(change: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    tensors = {**peft_tensors(random_adapter()), **change}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class TestReading:
    @pytest.mark.parametrize("infix", ["", ".default"])
    def test_factors_are_paired_by_module(self, infix):
        written = random_adapter()
        read = read_peft_adapter(config=peft_config(), tensors=peft_tensors(written, infix=infix))
        assert read.base_model == "tiny"
        assert list(read.modules) == sorted(MODULE_SHAPES)
        for path, factors in read.modules.items():
            assert torch.equal(factors.lora_a, written.modules[path].lora_a)
            assert torch.equal(factors.lora_b, written.modules[path].lora_b)
            assert factors.scaling == 2.0

    def test_half_precision_is_kept(self):
        tensors = {name: tensor.bfloat16() for name, tensor in peft_tensors(random_adapter()).items()}
        read = read_peft_adapter(config=peft_config(), tensors=tensors)
        assert read.modules[Q_PROJ].lora_a.dtype is torch.bfloat16

    def test_patterns_change_rank_and_scaling_of_their_modules(self):
        wide = random_adapter(rank=6)
        tensors = peft_tensors(random_adapter()) | {
            name: tensor for name, tensor in peft_tensors(wide).items() if DOWN_PROJ in name
        }
        config = peft_config(
            use_rslora=True, rank_pattern={"down_proj": 6}, alpha_pattern={"layers.0.mlp.up_proj": 2, "q_proj": 4}
        )
        read = read_peft_adapter(config=config, tensors=tensors)
        scalings = {path: factors.scaling for path, factors in read.modules.items()}
        assert scalings == pytest.approx({Q_PROJ: 4 / 2, UP_PROJ: 2 / 2, DOWN_PROJ: 8 / 6**0.5})
        assert read.lora_rank == 6

    def test_some_modules_may_be_without_effect(self):
        tensors = tensors_with({f"base_model.model.{Q_PROJ}.lora_B.weight": torch.zeros(12, 4)})
        assert Q_PROJ in read_peft_adapter(config=peft_config(), tensors=tensors).modules


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        [
            f"base_model.model.{Q_PROJ}.lora_magnitude_vector",
            f"base_model.model.{Q_PROJ}.lora_B.bias",
            f"base_model.model.{Q_PROJ}.lora_embedding_A.weight",
            f"base_model.model.{Q_PROJ}.base_layer.weight",
            f"base_model.model.{Q_PROJ}.base_layer.bias",
            "base_model.model.lm_head.base_layer.weight",
            "base_model.model.lm_head.modules_to_save.weight",
            "lora_A.weight",
            f"base_model.model.{'x' * 257}.lora_A.weight",
        ],
    )
    def test_tensors_that_are_no_factors_are_named(self, name):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            read_peft_adapter(config=peft_config(), tensors=tensors_with({name: torch.ones(4, 4)}))
        assert (caught.value.code, caught.value.place) == ("unexpected_tensor", name[:160])

    @pytest.mark.parametrize(
        ("change", "error", "code"),
        [
            ({f"base_model.model.{Q_PROJ}.lora_B.weight": None}, InvalidAdapter, "unpaired_factor"),
            (
                {f"base_model.model.{Q_PROJ}.lora_A.default.weight": torch.ones(4, 12)},
                InvalidAdapter,
                "duplicate_factor",
            ),
            ({f"base_model.model.{Q_PROJ}.lora_A.weight": torch.ones(5, 12)}, AdapterShapeMismatch, "rank_mismatch"),
            ({f"base_model.model.{Q_PROJ}.lora_B.weight": torch.ones(12, 3)}, AdapterShapeMismatch, "rank_mismatch"),
            (
                {f"base_model.model.{Q_PROJ}.lora_A.weight": torch.ones(4, 12, 1, 1)},
                AdapterShapeMismatch,
                "factor_not_a_matrix",
            ),
            (
                {f"base_model.model.{Q_PROJ}.lora_A.weight": torch.full((4, 12), torch.nan)},
                InvalidAdapter,
                "non_finite_weights",
            ),
            (
                {f"base_model.model.{Q_PROJ}.lora_B.weight": torch.full((12, 4), torch.inf)},
                InvalidAdapter,
                "non_finite_weights",
            ),
            (
                {f"base_model.model.{Q_PROJ}.lora_B.weight": torch.ones(12, 4, dtype=torch.int8)},
                UnsupportedAdapterFeature,
                "unsupported_dtype",
            ),
        ],
    )
    def test_damaged_factors(self, change, error, code):
        with pytest.raises(error) as caught:
            read_peft_adapter(config=peft_config(), tensors=tensors_with(change))
        assert caught.value.code == code
        assert Q_PROJ in caught.value.place
        assert caught.value.remedy

    def test_a_rank_that_both_factors_share_but_the_config_denies(self):
        with pytest.raises(AdapterShapeMismatch) as caught:
            read_peft_adapter(config=peft_config(r=8), tensors=peft_tensors(random_adapter(rank=4)))
        assert caught.value.code == "rank_mismatch"

    @pytest.mark.parametrize("half", ["lora_A", "lora_B"])
    def test_an_adapter_that_does_nothing(self, half):
        tensors = {
            name: torch.zeros_like(tensor) if half in name else tensor
            for name, tensor in peft_tensors(random_adapter()).items()
        }
        with pytest.raises(InvalidAdapter) as caught:
            read_peft_adapter(config=peft_config(), tensors=tensors)
        assert caught.value.code == "no_effective_module"

    def test_an_adapter_whose_halves_never_meet(self):
        half = torch.zeros(4, 12)
        half[0] = 1.0
        other = torch.zeros(12, 4)
        other[:, 1] = 1.0
        name = f"base_model.model.{Q_PROJ}"
        with pytest.raises(InvalidAdapter) as caught:
            read_peft_adapter(
                config=peft_config(), tensors={f"{name}.lora_A.weight": half, f"{name}.lora_B.weight": other}
            )
        assert caught.value.code == "no_effective_module"

    def test_an_adapter_without_tensors(self):
        with pytest.raises(InvalidAdapter) as caught:
            read_peft_adapter(config=peft_config(), tensors={})
        assert caught.value.code == "no_effective_module"

    def test_a_scaling_of_zero(self):
        with pytest.raises(InvalidAdapter) as caught:
            read_peft_adapter(config=peft_config(lora_alpha=0), tensors=peft_tensors(random_adapter()))
        assert caught.value.code == "no_effective_module"


class TestAgainstTheBase:
    def test_a_fitting_adapter_passes(self):
        check_against_base(random_adapter(), base_modules={**MODULE_SHAPES, "lm_head": (99, 12)})

    def test_an_unknown_module(self):
        with pytest.raises(InvalidAdapter) as caught:
            check_against_base(random_adapter(), base_modules={Q_PROJ: (12, 12), UP_PROJ: (20, 12)})
        assert (caught.value.code, caught.value.place) == ("unknown_target_module", DOWN_PROJ)

    @pytest.mark.parametrize("shape", [(12, 13), (13, 12)])
    def test_a_layer_of_another_shape(self, shape):
        with pytest.raises(AdapterShapeMismatch) as caught:
            check_against_base(random_adapter(), base_modules={**MODULE_SHAPES, Q_PROJ: shape})
        assert (caught.value.code, caught.value.place) == ("adapter_shape_mismatch", Q_PROJ)
