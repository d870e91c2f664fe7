"""Half and single precision, and a base quantised by transformers' own integration, against PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from services.worker.models.loader import load_model
from services.worker.models.quantization import quantization_config_of
from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import load_tiny, make_model, save_base
from tests.builders.peft_folders import components_for, full_plan, loaded_by_peft, train_adapter

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
_TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc", "wte", "lm_head"], "mixtral": "all-linear", "llama": "all-linear"}


@pytest.mark.parametrize("dtype", _TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("architecture", _TARGETS)
def test_every_type_is_close_to_the_exact_answer(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    train_adapter(tmp_path, make_model(architecture), target_modules=_TARGETS[architecture])
    adapter = components_for(tmp_path, make_model(architecture))
    # Both sides start from the same rounded weights; the reference computes with them exactly.
    engine = make_engine(load_tiny(architecture, dtype=dtype), InMemoryComponentSource({"a": adapter}))
    recorder = LogitRecorder(engine)
    prompts = {"base": random_prompt(9), "a": random_prompt(12, 1)}
    done = run_prompts(engine, prompts, {"a": full_plan("a", adapter)}, max_tokens=3)
    for name, prompt in prompts.items():
        model = make_model(architecture, dtype=dtype).to(torch.float64)
        reference = model if name == "base" else loaded_by_peft(tmp_path, model)
        expected = full_forward_logits(reference, prompt, done[name].token_ids)
        assert recorder.of(name).dtype == dtype
        assert_close(recorder.of(name), expected, _TOLERANCE[dtype])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose layers are wide enough for blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("base")
    save_base(folder, hidden_size=64, intermediate_size=128)
    return folder


def _quantised(base: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    config = quantization_config_of("bitsandbytes-nf4", compute_dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=config).eval()


class TestQuantisedBase:
    def test_it_serves_what_qlora_trained(self, base: Path, tmp_path: Path) -> None:
        pytest.importorskip("bitsandbytes")
        train_adapter(
            tmp_path, make_model(vocab_size=259, hidden_size=64, intermediate_size=128), target_modules="all-linear"
        )
        loaded = load_model(str(base), device="cpu", quantization="bitsandbytes-nf4")
        assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
        assert loaded.dtype == torch.float32
        adapter = components_for(tmp_path, loaded.model)
        engine = make_engine(loaded, InMemoryComponentSource({"a": adapter}), max_num_batched_tokens=16)
        recorder = LogitRecorder(engine)
        prompts = {"base": random_prompt(9), "a": random_prompt(20, 1)}
        done = run_prompts(engine, prompts, {"a": full_plan("a", adapter)}, max_tokens=4)
        for name, prompt in prompts.items():
            model = _quantised(base)
            reference = model if name == "base" else loaded_by_peft(tmp_path, model)
            assert_close(recorder.of(name), full_forward_logits(reference, prompt, done[name].token_ids), 1e-5)
        exact = full_forward_logits(load_model(str(base), device="cpu").model, prompts["base"], done["base"].token_ids)
        assert (recorder.of("base") - exact).abs().max() > 1e-2
