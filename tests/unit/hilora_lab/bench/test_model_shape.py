from __future__ import annotations

import pytest
import torch

from hilora.errors import InvalidInput
from hilora_lab.bench.model_shape import build_base, find_shape, twin_of


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "num_parameters"),
        [
            ("qwen2.5-0.5b", 494_032_768),  # as its model card counts them
            ("llama-3.1-8b", 8_030_261_248),
        ],
    )
    def test_real_models_have_their_real_size(self, name, num_parameters):
        loaded = build_base(find_shape(name), device="meta")

        assert sum(parameter.numel() for parameter in loaded.model.parameters()) == num_parameters

    def test_an_unknown_shape_says_which_there_are(self):
        with pytest.raises(InvalidInput) as caught:
            find_shape("gpt-9")

        assert caught.value.code == "unknown_model_shape"
        assert "qwen2.5-0.5b" in str(caught.value.remedy)

    def test_one_seed_gives_one_model(self):
        first, second, other = (build_base(find_shape("tiny"), seed=seed).model for seed in (3, 3, 4))

        assert torch.equal(first.lm_head.weight, second.lm_head.weight)
        assert not torch.equal(first.lm_head.weight, other.lm_head.weight)

    def test_every_token_has_a_text_of_its_own(self):
        loaded = build_base(find_shape("tiny"))

        texts = {loaded.tokenizer.decode([token_id]) for token_id in range(loaded.vocab_size)}

        assert len(texts) == loaded.vocab_size


class TestTwin:
    def test_weights_are_shared_and_modules_are_not(self):
        base = build_base(find_shape("tiny"))
        twin = twin_of(base)

        pairs = list(zip(base.model.parameters(), twin.model.parameters(), strict=True))
        twin.model.model.layers[0].mlp.up_proj = torch.nn.Identity()

        assert all(ours is theirs for ours, theirs in pairs)
        assert isinstance(base.model.model.layers[0].mlp.up_proj, torch.nn.Linear)
