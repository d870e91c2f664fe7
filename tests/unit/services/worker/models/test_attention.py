from __future__ import annotations

import pytest
import torch

from services.worker.models.attention import attach_attention
from tests.builders.kv import make_cache
from tests.builders.models import make_model


class TestAttachment:
    def test_every_layer_reads_its_step_from_one_context(self) -> None:
        model = make_model()
        context = attach_attention(model, make_cache("slots"))
        layers = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
        assert {id(layer.hilora_attention) for layer in layers} == {id(context)}

    def test_a_pass_outside_a_step_is_a_misuse(self) -> None:
        model = make_model()
        attach_attention(model, make_cache("slots"))
        with pytest.raises(AssertionError, match="outside a step"):
            model(input_ids=torch.tensor([[3]]), use_cache=False)

    def test_a_model_without_attention_is_refused(self) -> None:
        class Plain(torch.nn.Module):
            def set_attn_implementation(self, name: str) -> None: ...

        with pytest.raises(ValueError, match="no attention layers"):
            attach_attention(Plain(), make_cache("slots"))

    def test_more_layers_than_the_cache_has_are_refused(self) -> None:
        with pytest.raises(ValueError, match="layer 2 has no room"):
            attach_attention(make_model(num_hidden_layers=3), make_cache("slots"))

    def test_sinks_are_refused(self) -> None:
        model = make_model()
        layer = next(module for module in model.modules() if hasattr(module, "layer_idx"))
        layer.sinks = torch.nn.Parameter(torch.zeros(4))
        with pytest.raises(ValueError, match="sinks"):
            attach_attention(model, make_cache("slots"))
