"""The T5 family with PEFT's LoRA: the engine's logits are PEFT's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hilora.adapter import RocBasis
from tests.builders.engine import InMemoryComponentSource, make_engine
from tests.builders.logits import LogitRecorder, assert_close, random_prompt, run_prompts
from tests.builders.peft_folders import components_for, full_plan, loaded_by_peft, train_adapter
from tests.builders.seq2seq import SEQ2SEQ_VARIANTS, load_tiny_seq2seq, make_seq2seq, seq2seq_logits

_TARGETS = {"attention": ["q", "v"], "all": "all-linear"}


@pytest.mark.parametrize("variant", SEQ2SEQ_VARIANTS)
def test_a_mixed_batch_equals_peft_adapter_by_adapter(variant: str, tmp_path: Path) -> None:
    adapters = {}
    for seed, (name, modules) in enumerate(_TARGETS.items()):
        train_adapter(
            tmp_path / name, make_seq2seq(variant), seed=seed, target_modules=modules, task_type="SEQ_2_SEQ_LM"
        )
        basis = list(RocBasis)[seed]
        adapters[name] = components_for(tmp_path / name, make_seq2seq(variant, dtype=torch.float32), basis)
    engine = make_engine(load_tiny_seq2seq(variant), InMemoryComponentSource(adapters), max_num_batched_tokens=16)
    recorder = LogitRecorder(engine)
    prompts = {"base": random_prompt(9), **{name: random_prompt(21, seed) for seed, name in enumerate(adapters)}}
    plans = {name: full_plan(name, adapter) for name, adapter in adapters.items()}
    done = run_prompts(engine, prompts, plans, max_tokens=6)
    for name, prompt in prompts.items():
        model = make_seq2seq(variant)
        if name != "base":
            model = loaded_by_peft(tmp_path / name, model)
        expected = seq2seq_logits(model, prompt, done[name].token_ids)
        # The singular basis is stored in float32; the trained one is what PEFT saved, bit for bit.
        is_exact = name == "base" or adapters[name].basis is RocBasis.TRAINED
        assert_close(recorder.of(name), expected, 1e-9 if is_exact else 2e-5)
        assert done[name].token_ids == expected.argmax(dim=-1).tolist()
