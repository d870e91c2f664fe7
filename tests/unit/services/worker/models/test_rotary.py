"""One request's length never turns another one's keys."""

from __future__ import annotations

import pytest
import torch

from services.worker.models.rotary import fix_rotary_frequencies
from tests.builders.engine import make_engine
from tests.builders.logits import LogitRecorder, assert_close, random_prompt, run_prompts
from tests.builders.models import load_tiny, make_model

_KINDS = {
    "dynamic": (
        "llama",
        {
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 24,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 24,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 2.5, 3.0, 4.0],
            },
        },
    ),
}


def _engine(kind: str):
    architecture, config = _KINDS[kind]
    return make_engine(load_tiny(architecture, dtype=torch.float64, **config))


@pytest.mark.parametrize("kind", _KINDS)
class TestStretchedContexts:
    def test_short_texts_beside_long_ones_are_as_alone(self, kind) -> None:
        prompts = {"short": random_prompt(6), "long": random_prompt(60, 1)}
        together = _engine(kind)
        recorder = LogitRecorder(together)
        run_prompts(together, prompts, {})
        for name, prompt in prompts.items():
            alone = _engine(kind)
            alone_recorder = LogitRecorder(alone)
            run_prompts(alone, {name: prompt}, {})
            assert_close(recorder.of(name), alone_recorder.of(name))

    def test_the_longest_texts_have_transformers_frequencies(self, kind) -> None:
        architecture, config = _KINDS[kind]
        fixed, reference = make_model(architecture, **config), make_model(architecture, **config)
        fix_rotary_frequencies(fixed, max_model_len=96)
        ids = torch.tensor([random_prompt(96)])
        assert_close(fixed(input_ids=ids).logits, reference(input_ids=ids).logits, 1e-5)
        frequencies = fixed.model.rotary_emb.inv_freq.clone()
        fixed(input_ids=ids[:, :5])
        assert torch.equal(fixed.model.rotary_emb.inv_freq, frequencies)

    def test_an_engine_for_short_texts_has_the_unstretched_ones(self, kind) -> None:
        architecture, config = _KINDS[kind]
        fixed, reference = make_model(architecture, **config), make_model(architecture, **config)
        fix_rotary_frequencies(fixed, max_model_len=24)
        ids = torch.tensor([random_prompt(20)])
        assert torch.equal(fixed(input_ids=ids).logits, reference(input_ids=ids).logits)


def test_other_models_are_left_as_they_are() -> None:
    for architecture in ("llama", "gemma3_text", "gpt2"):
        model = make_model(architecture)
        kinds = [getattr(module, "rope_type", None) for module in model.modules()]
        fix_rotary_frequencies(model, max_model_len=96)
        assert [getattr(module, "rope_type", None) for module in model.modules()] == kinds
