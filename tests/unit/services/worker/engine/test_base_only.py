"""An engine without LoRA: the base's own layers, and no way in for ROCs."""

from __future__ import annotations

import pytest
import torch

from hilora.errors import InvalidInput
from tests.builders.engine import make_engine, make_plan, run_until_done, submit
from tests.builders.logits import LogitRecorder, random_prompt, run_prompts
from tests.builders.models import load_tiny


class TestLoraDisabled:
    def test_the_model_keeps_its_layers(self) -> None:
        loaded = load_tiny()
        before = [type(module) for module in loaded.model.modules()]
        make_engine(loaded, enable_lora=False)
        assert [type(module) for module in loaded.model.modules()] == before

    def test_it_answers_as_an_engine_with_lora_does_bit_for_bit(self) -> None:
        logits = []
        for enable_lora in (False, True):
            engine = make_engine(load_tiny(), enable_lora=enable_lora)
            recorder = LogitRecorder(engine)
            run_prompts(engine, {"r": random_prompt(20)}, {})
            logits.append(recorder.of("r"))
        assert torch.equal(*logits)

    def test_plans_with_rocs_are_refused(self) -> None:
        engine = make_engine(load_tiny(), enable_lora=False)
        with pytest.raises(InvalidInput) as caught:
            submit(engine, "r", random_prompt(4), plan=make_plan(("a", 4, 2, 1.0)))
        assert caught.value.code == "lora_disabled"
        nothing = submit(engine, "r", random_prompt(4), plan=make_plan(("a", 4, 0, 1.0)))
        run_until_done(engine, nothing)
        assert nothing.finished


class TestLearnedPositions:
    def test_a_limit_beyond_them_is_refused_at_the_start(self) -> None:
        with pytest.raises(ValueError, match="128 learned positions"):
            make_engine(load_tiny("gpt2"), max_model_len=129)
        make_engine(load_tiny("gpt2"), max_model_len=128)

    def test_computed_positions_have_no_such_limit(self) -> None:
        # As many words as positions: a table of words is none of positions.
        make_engine(load_tiny("llama", vocab_size=128), max_model_len=200)
