"""Every model family with LoRA on all of its linear layers: the engine's logits are PEFT's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import ARCHITECTURES, load_tiny, make_model
from tests.builders.peft_folders import components_for, full_plan, loaded_by_peft, train_adapter

_LONG_FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}
_VARIANTS: dict[str, tuple[str, dict]] = {
    **{architecture: (architecture, {}) for architecture in ARCHITECTURES},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "gemma-tied": ("gemma", {"tie_word_embeddings": True}),
    "gpt2-tied": ("gpt2", {"tie_word_embeddings": True}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "yarn-rope": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 128,
                **_LONG_FACTORS,
            },
        },
    ),
}
_TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"]}
# transformers computes softcapped attention with a float32 softmax, whatever the model's type.
_TOLERANCE = {"gemma2": 5e-6}


def _adapters(folder: Path, architecture: str, config: dict) -> dict[str, DecomposedAdapter]:
    """Two adapters that PEFT trained on all linear layers, one of them read in the singular basis."""
    adapters: dict[str, DecomposedAdapter] = {}
    for seed, basis in enumerate(RocBasis):
        model = make_model(architecture, dtype=torch.float64, **config)
        train_adapter(
            folder / basis,
            model,
            seed=seed,
            target_modules=_TARGETS.get(architecture, "all-linear"),
            fan_in_fan_out=architecture == "gpt2",
        )
        adapters[basis] = components_for(folder / basis, make_model(architecture, **config), basis)
    return adapters


@pytest.mark.parametrize("variant", _VARIANTS)
def test_a_mixed_batch_equals_peft_adapter_by_adapter(variant: str, tmp_path: Path) -> None:
    architecture, config = _VARIANTS[variant]
    adapters = _adapters(tmp_path, architecture, config)
    engine = make_engine(
        load_tiny(architecture, dtype=torch.float64, **config),
        InMemoryComponentSource(adapters),
        max_num_batched_tokens=16,
    )
    recorder = LogitRecorder(engine)
    prompts = {"base": random_prompt(9), **{basis: random_prompt(21, seed) for seed, basis in enumerate(adapters)}}
    plans = {name: full_plan(name, adapter) for name, adapter in adapters.items()}
    done = run_prompts(engine, prompts, plans, max_tokens=4)
    for name, prompt in prompts.items():
        model = make_model(architecture, dtype=torch.float64, **config)
        expected = full_forward_logits(
            model if name == "base" else loaded_by_peft(tmp_path / name, model), prompt, done[name].token_ids
        )
        # The singular basis is stored in float32; the trained one is what PEFT saved, bit for bit.
        tolerance = 2e-5 if name == RocBasis.SVD else _TOLERANCE.get(architecture, 1e-9)
        assert_close(recorder.of(name), expected, tolerance)
        assert done[name].token_ids == expected.argmax(dim=-1).tolist()
