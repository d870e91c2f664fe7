"""Whatever PEFT writes, our components make the same weights of a base as PEFT's own merge does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hilora.adapter import LoRAAdapter, RocBasis
from hilora.decomposition import decompose, delta_weight
from hilora.errors import UnsupportedAdapterFeature
from tests.builders.models import make_model
from tests.builders.peft_folders import RANK, loaded_by_peft, read_for, train_adapter

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "names": ("llama", {"target_modules": _ATTENTION}),
    "one expression": ("llama", {"target_modules": r".*layers\.[01]\.(self_attn\.(q|v)|mlp\.up)_proj"}),
    "all linear": ("qwen2", {"target_modules": "all-linear"}),
    "fused projections": ("phi3", {"target_modules": "all-linear"}),
    "one layer": ("llama", {"target_modules": _ATTENTION, "layers_to_transform": 1}),
    "listed layers": (
        "llama",
        {"target_modules": _ATTENTION, "layers_to_transform": [0], "layers_pattern": "layers"},
    ),
    "excluded modules": (
        "llama",
        {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\.mlp\..*"},
    ),
    "rsLoRA": ("llama", {"target_modules": _ATTENTION, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": _ATTENTION,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.k_proj": 6, "^model.layers.0.self_attn.o_proj": 3},
            "alpha_pattern": {"(k|v)_proj": 3, r".*\.0\..*q_proj": 5},
        },
    ),
    "patterns and rsLoRA": (
        "llama",
        {
            "target_modules": _ATTENTION,
            "use_rslora": True,
            "rank_pattern": {"v_proj": 7},
            "alpha_pattern": {"q_proj": 1},
        },
    ),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "output layer": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "stacked experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}),
    "stacked experts with patterns": (
        "qwen3_moe",
        {"target_modules": [], "target_parameters": _EXPERTS, "rank_pattern": {r".*\.gate_up_proj": 2}},
    ),
    "expert router": ("mixtral", {"target_modules": ["v_proj"], "target_parameters": ["gate.weight"]}),
    "shared expert": ("qwen2_moe", {"target_modules": ["shared_expert.up_proj", "shared_expert.down_proj"]}),
    "gaussian": ("llama", {"target_modules": _ATTENTION, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": _ATTENTION, "init_lora_weights": "orthogonal"}),
}


def _dense_change(adapter: LoRAAdapter, model: torch.nn.Module, basis: RocBasis) -> dict[str, torch.Tensor]:
    """What the components add to each parameter, in the parameter's own layout."""
    changes: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters())
    for path, rocs in decompose(adapter, basis=basis).modules.items():
        delta_OD = delta_weight(rocs).double()
        name = f"{path}.weight"
        if name in parameters:
            is_transposed = parameters[name].shape != delta_OD.shape
            is_embedding = isinstance(model.get_submodule(path), torch.nn.Embedding)
            is_conv = type(model.get_submodule(path)).__name__ == "Conv1D"
            changes[name] = delta_OD.T if is_transposed or is_embedding or is_conv else delta_OD
            continue
        experts, expert_idx, parameter = path.rsplit(".", 2)
        name = f"{experts}.{parameter}"
        changes.setdefault(name, torch.zeros_like(parameters[name]))[int(expert_idx)] = delta_OD
    return changes


def _assert_same_weights(folder: Path, architecture: str, *, dtype: torch.dtype = torch.float64, **config: Any) -> None:
    base = make_model(architecture, dtype=dtype, **config)
    adapter = read_for(folder, base)
    wrapped = loaded_by_peft(folder, make_model(architecture, dtype=dtype, **config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on merging tied weights
        merged = dict(wrapped.merge_and_unload().named_parameters())
    for basis in RocBasis:
        changes = _dense_change(adapter, base, basis)
        assert any(change.abs().max() > 0.01 for change in changes.values())
        for name, parameter in base.named_parameters():
            expected = merged[name] - parameter
            actual = changes.get(name, torch.zeros_like(parameter)).to(dtype)
            torch.testing.assert_close(
                actual, expected, rtol=1e-5, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}"
            )


@pytest.mark.parametrize("variant", _VARIANTS)
def test_every_option_of_peft(variant: str, tmp_path: Path) -> None:
    architecture, config = _VARIANTS[variant]
    train_adapter(tmp_path, make_model(architecture, dtype=torch.float64), **config)
    _assert_same_weights(tmp_path, architecture)


def test_an_initialisation_from_the_base_that_leaves_it_alone(tmp_path: Path) -> None:
    train_adapter(tmp_path, make_model(), target_modules=_ATTENTION, init_lora_weights="mica")
    _assert_same_weights(tmp_path, "llama", dtype=torch.float32)  # all that PEFT has it for


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    train_adapter(tmp_path, make_model(), target_modules=_ATTENTION)
    weights = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights)
    _assert_same_weights(tmp_path, "llama")


def test_an_embedding_that_the_output_layer_shares(tmp_path: Path) -> None:
    model = make_model(dtype=torch.float64, tie_word_embeddings=True)
    train_adapter(tmp_path, model, target_modules=["embed_tokens", "q_proj"])
    _assert_same_weights(tmp_path, "llama", tie_word_embeddings=True)


@pytest.mark.parametrize("init", ["pissa", "olora"])
class TestInitialisationsThatMoveTheBase:
    def _train(self, folder: Path, init: str, **saving: Any) -> None:
        import peft

        model = make_model()
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_ATTENTION, init_lora_weights=init)
        wrapped = peft.get_peft_model(model, config)
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(folder / "init")
        wrapped.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        wrapped.save_pretrained(folder, **saving)

    def test_converted_by_peft_they_are_plain(self, init: str, tmp_path: Path) -> None:
        self._train(tmp_path, init, path_initial_model_for_weight_conversion=str(tmp_path / "init"))
        _assert_same_weights(tmp_path, "llama")

    def test_unconverted_they_are_refused_with_the_call_that_converts(self, init: str, tmp_path: Path) -> None:
        self._train(tmp_path, init)
        with pytest.raises(UnsupportedAdapterFeature) as caught:
            read_for(tmp_path, make_model())
        assert caught.value.code == "base_changing_init"
        assert "path_initial_model_for_weight_conversion" in (caught.value.remedy or "")


class TestLayouts:
    """Files that older versions of PEFT, or trainers around it, left of the same adapter."""

    @pytest.mark.parametrize(
        "rename",
        [
            lambda name: name.removeprefix("base_model.model."),
            lambda name: name.replace(".weight", ".default.weight"),
            lambda name: name.replace(".weight", ".my-adapter.weight"),
            lambda name: name.removesuffix(".weight"),
            lambda name: f"module.{name}",
            lambda name: name.replace("layers.", "_orig_mod.layers."),
            lambda name: name.replace("self_attn.", "_fsdp_wrapped_module._checkpoint_wrapped_module.self_attn."),
            lambda name: name.replace("model.layers", "model.language_model.layers"),
            lambda name: name.removeprefix("base_model.model.model."),
        ],
        ids=["no prefix", "default", "named", "bare factors", "ddp", "compiled", "fsdp", "inside a VLM", "headless"],
    )
    def test_every_layout_is_the_same_adapter(self, rename: Any, tmp_path: Path) -> None:
        train_adapter(tmp_path, make_model(), target_modules=[*_ATTENTION, "down_proj"], use_rslora=True)
        base = make_model()
        expected = decompose(read_for(tmp_path, base), basis=RocBasis.TRAINED)
        weights = tmp_path / "adapter_model.safetensors"
        save_file({rename(name): tensor for name, tensor in load_file(weights).items()}, weights)
        actual = decompose(read_for(tmp_path, base), basis=RocBasis.TRAINED)
        assert list(actual.modules) == list(expected.modules)
        for path, rocs in expected.modules.items():
            assert torch.equal(delta_weight(actual.modules[path]), delta_weight(rocs))

    @pytest.mark.parametrize(
        "fields",
        [
            {"base_model_name_or_path": "unsloth/tinyllama-unsloth-bnb-4bit", "unsloth_fixed": True},
            {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "m", "unsloth_fixed": True}},
            {"modules_to_save": [], "lora_bias": False, "eva_config": None, "runtime_config": None},
            {"revision": "main", "peft_version": "0.4.0", "init_lora_weights": None, "feature_of_tomorrow": None},
        ],
        ids=["unsloth", "unsloth mapping", "axolotl", "old and new"],
    )
    def test_extra_fields_of_trainers_change_nothing(self, fields: dict[str, Any], tmp_path: Path) -> None:
        train_adapter(tmp_path, make_model(dtype=torch.float64), target_modules=_ATTENTION)
        path = tmp_path / "adapter_config.json"
        config = json.loads(path.read_text())
        base = make_model(dtype=torch.float64)
        expected = read_for(tmp_path, base)
        path.write_text(json.dumps({**config, **fields}))
        actual = read_for(tmp_path, base)
        for module_path, factors in expected.modules.items():
            assert torch.equal(actual.modules[module_path].lora_b, factors.lora_b)
            assert actual.modules[module_path].scaling == factors.scaling
