from __future__ import annotations

import math

import pytest

from hilora.errors import InvalidAdapter, UnsupportedAdapterFeature
from hilora.finding import RefusalLog
from hilora.peft_config import parse_peft_config
from tests.builders.adapters import peft_config

REFUSED_FEATURES = {
    "use_dora": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "modules_to_save": ["lm_head"],
    "lora_bias": True,
    "alora_invocation_tokens": [1, 2],
    "layer_replication": [[0, 4], [2, 5]],
    "trainable_token_indices": [0],
    "velora_config": {"num_groups": 2},
    "monteclora_config": {},
    "kasa_config": {"beta": 1.0},
    "arrow_config": {"top_k": 2},
    "megatron_config": {"tp": 2},
    "ensure_weight_tying": True,
    "enable_lora": [True, False, True],
}


class TestReading:
    def test_a_plain_config_is_read(self):
        config = parse_peft_config(peft_config(r=16, lora_alpha=32))
        assert (config.rank, config.alpha, config.use_rslora) == (16, 32.0, False)
        assert config.base_model == "tiny"
        assert config.target_modules == ("q_proj", "up_proj", "down_proj")
        assert config.target_parameters == ()

    def test_parameters_of_experts_are_named(self):
        config = parse_peft_config(peft_config(target_parameters=["experts.gate_up_proj"]))
        assert config.target_parameters == ("experts.gate_up_proj",)

    def test_scaling_follows_the_variant(self):
        assert parse_peft_config(peft_config()).scaling_of(rank=16, alpha=8.0) == 0.5
        assert parse_peft_config(peft_config(use_rslora=True)).scaling_of(rank=16, alpha=8.0) == 2.0

    def test_a_target_expression_is_one_entry(self):
        assert parse_peft_config(peft_config(target_modules="all-linear")).target_modules == ("all-linear",)

    def test_optional_fields_may_be_missing(self):
        config = parse_peft_config({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
        assert config.rank_pattern == {} and config.base_model is None and not config.fan_in_fan_out

    @pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
    def test_initialisations_that_keep_the_base_are_accepted(self, init):
        assert parse_peft_config(peft_config(init_lora_weights=init)).rank == 4

    def test_unknown_fields_that_are_empty_are_accepted(self):
        assert parse_peft_config(peft_config(next_years_feature=None, another={}, third=False)).rank == 4


class TestRefusals:
    @pytest.mark.parametrize(("field", "value"), REFUSED_FEATURES.items())
    def test_unsupported_features_are_named(self, field, value):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            parse_peft_config(peft_config(**{field: value}))
        assert caught.value.code == "unsupported_adapter_feature"
        assert caught.value.place == field
        assert caught.value.remedy

    @pytest.mark.parametrize("field", REFUSED_FEATURES)
    def test_the_same_features_switched_off_are_fine(self, field):
        assert parse_peft_config(peft_config(**{field: None})).rank == 4

    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga"])
    def test_initialisations_that_change_the_base(self, init):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            parse_peft_config(peft_config(init_lora_weights=init))
        assert caught.value.code == "base_changing_init"
        assert "path_initial_model_for_weight_conversion" in caught.value.remedy

    def test_a_quantised_base_s_residual_cannot_be_converted(self):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            parse_peft_config(peft_config(init_lora_weights="loftq"))
        assert caught.value.code == "base_changing_init"
        assert "base of its own" in caught.value.remedy

    def test_every_refusal_is_found_at_once(self):
        log = RefusalLog()
        config = peft_config(use_dora=True, bias="all", r="8", init_lora_weights="pissa", modules_to_save=["lm_head"])
        assert parse_peft_config(config, refuse=log).alpha == 8.0
        assert {error.place for error in log.errors} == {
            "use_dora",
            "bias",
            "r",
            "init_lora_weights",
            "modules_to_save",
        }

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"peft_type": "IA3"}, "unsupported_peft_type"),
            ({"init_lora_weights": "of_tomorrow"}, "unknown_init"),
            ({"bias": "all"}, "unsupported_bias"),
            ({"bias": "lora_only"}, "unsupported_bias"),
            ({"next_years_feature": {"on": True}}, "unknown_config_field"),
        ],
    )
    def test_other_refusals_have_their_code(self, change, code):
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            parse_peft_config(peft_config(**change))
        assert caught.value.code == code
        assert caught.value.place == next(iter(change))

    @pytest.mark.parametrize(
        "change",
        [
            {"peft_type": None},
            {"peft_type": 7},
            {"r": None},
            {"r": 0},
            {"r": "8"},
            {"r": True},
            {"r": 8.0},
            {"lora_alpha": "16"},
            {"lora_alpha": math.nan},
            {"lora_alpha": math.inf},
            {"use_rslora": "yes"},
            {"rank_pattern": [1]},
            {"rank_pattern": {"q_proj": 0}},
            {"alpha_pattern": {"q_proj": None}},
            {"target_modules": 3},
            {"target_modules": [1]},
            {"base_model_name_or_path": 5},
        ],
    )
    def test_malformed_values(self, change):
        with pytest.raises(InvalidAdapter) as caught:
            parse_peft_config(peft_config(**change))
        assert caught.value.code == "invalid_adapter_config"
        assert caught.value.place.startswith(next(iter(change)))


class TestTrainers:
    """What trainers around PEFT leave in a config."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"auto_mapping": {"base_model_class": "Qwen3ForCausalLM", "parent_library": "x", "unsloth_fixed": True}},
            {"unsloth_fixed": True, "unsloth_version": "2026.1", "base_model_name_or_path": "unsloth/q-bnb-4bit"},
            {"modules_to_save": [], "lora_bias": False, "trainable_token_indices": None, "use_bdlora": None},
            {"layers_to_transform": [1, 3], "layers_pattern": "layers", "exclude_modules": ["lm_head"]},
            {"eva_config": None, "corda_config": {}, "runtime_config": {"ephemeral_gpu_offload": False}},
            {"merge_weights": False, "enable_lora": None, "fan_in_fan_out": None},
        ],
    )
    def test_is_accepted_where_it_changes_nothing(self, fields):
        assert parse_peft_config(peft_config(**fields)).rank == 4
