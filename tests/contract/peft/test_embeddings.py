"""Adapters on embeddings and on the output embedding, tied or not, against PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.logits import LogitRecorder, assert_close, full_forward_logits, random_prompt, run_prompts
from tests.builders.models import load_tiny, make_model
from tests.builders.peft_folders import components_for, full_plan, loaded_by_peft, train_adapter

_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None}
_BIOGPT = {"scale_embedding": True, "num_key_value_heads": None}
_CASES = {
    "embedding": ("llama", ["embed_tokens"], {}),
    "embedding, tied": ("llama", ["embed_tokens"], {"tie_word_embeddings": True}),
    "output": ("llama", ["lm_head"], {}),
    "output, tied": ("qwen2", ["lm_head", "q_proj"], {"tie_word_embeddings": True}),
    "both, tied": ("gemma", ["embed_tokens", "lm_head", "down_proj"], {"tie_word_embeddings": True}),
    "scaled embedding": ("gemma3_text", ["embed_tokens"], {"tie_word_embeddings": True}),
    "scaled embedding, by a number": ("biogpt", ["embed_tokens", "fc1"], _BIOGPT),
    "beside positions that are no ids": ("opt", ["embed_tokens", "q_proj", "fc2"], _OPT),
    "learned positions": ("gpt2", ["wte", "wpe", "lm_head", "c_attn"], {"tie_word_embeddings": True}),
    "output with a bias": ("phi", ["lm_head", "embed_tokens"], {}),
}


@pytest.mark.parametrize("case", _CASES)
def test_logits_are_pefts(case: str, tmp_path: Path) -> None:
    architecture, targets, config = _CASES[case]

    def model():
        return make_model(architecture, dtype=torch.float64, **config)

    train_adapter(tmp_path, model(), target_modules=targets)
    adapter = components_for(tmp_path, model())
    loaded = load_tiny(architecture, dtype=torch.float64, **config)
    engine = make_engine(loaded, InMemoryComponentSource({"words": adapter}), max_num_batched_tokens=16)
    recorder = LogitRecorder(engine)
    prompts = {"base": random_prompt(9), "words": random_prompt(21, 1), "more": random_prompt(5, 2)}
    plans = dict.fromkeys(("words", "more"), full_plan("words", adapter))
    done = run_prompts(engine, prompts, plans, max_tokens=4)
    for name, prompt in prompts.items():
        reference = model() if name == "base" else loaded_by_peft(tmp_path, model())
        expected = full_forward_logits(reference, prompt, done[name].token_ids)
        assert_close(recorder.of(name), expected)
        assert done[name].token_ids == expected.argmax(dim=-1).tolist()


def test_a_tied_weight_stays_one_weight() -> None:
    loaded = load_tiny(tie_word_embeddings=True)
    shared = loaded.model.get_input_embeddings().weight
    make_engine(loaded)
    assert loaded.model.get_input_embeddings().weight is shared
    assert loaded.model.get_output_embeddings().weight is shared


def test_the_base_weights_that_peft_saves_along_are_left_aside(tmp_path: Path) -> None:
    train_adapter(tmp_path, make_model(), target_modules=["embed_tokens", "lm_head"])
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.model.embed_tokens.base_layer.weight" in names
    assert components_for(tmp_path, make_model()).modules.keys() == {"lm_head", "model.embed_tokens"}
