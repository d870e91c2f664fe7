"""Gated layers in the places of a model's own: what they ask the step for, and what they leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from hilora.target_layer import EXPERT_PROJECTIONS
from services.worker.lora.gating.batch_plan import RocContext
from services.worker.lora.layers.wrapping import listed_modules, wrap_layers
from tests.builders.models import ARCHITECTURES, EXPERT_ARCHITECTURES, make_model


@dataclass
class FakeStep:
    """Adds the same number everywhere, and remembers where."""

    amount: float = 1.0
    only: frozenset[int] | None = None
    calls: list[tuple[int, torch.Tensor | None, bool]] = field(default_factory=list)

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        *,
        is_output_embedding: bool = False,
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        assert x_TD.ndim == y_TO.ndim == 2
        assert len(x_TD) == len(y_TO)
        self.calls.append((module_idx, token_idx_T, is_output_embedding))
        y_TO += self.amount

    def is_targeted(self, module_idx: int) -> bool:
        return self.only is None or module_idx in self.only

    def has_targets(self, module_idxs: slice) -> bool:
        return any(self.is_targeted(module_idx) for module_idx in range(module_idxs.start, module_idxs.stop))

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        assert token_ids_T.shape == y_TO.shape[:1]
        self.add(module_idx, token_ids_T[:, None], y_TO)


def wrapped(module: torch.nn.Module, step: FakeStep | None) -> Any:
    """The module in its gated form, under the path `layer`."""
    context = RocContext()
    model = torch.nn.ModuleDict({"layer": module})
    wrap_layers(model, context, output_embedding=None)
    context.step = step  # type: ignore[assignment]
    return model["layer"]


class PackedLinear(torch.nn.Module):
    """A quantised layer: eight-bit weights, activations of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 10
        self.register_buffer("packed", torch.ones(10, 6, dtype=torch.int8))

    def forward(self, x):
        return x @ self.packed.to(x.dtype).T


class TestLinear:
    @pytest.mark.parametrize("make", [lambda: torch.nn.Linear(6, 10), lambda: Conv1D(10, 6), PackedLinear])
    def test_the_base_s_result_plus_the_step_s(self, make):
        layer = make()
        x = torch.randn(2, 3, 6)
        expected = layer(x)
        assert torch.equal(wrapped(layer, None)(x), expected)
        torch.testing.assert_close(wrapped(layer, FakeStep())(x), expected + 1)

    def test_hooks_of_the_base_run(self):
        layer = torch.nn.Linear(6, 10)
        layer.register_forward_hook(lambda module, inputs, output: output * 2)
        x = torch.randn(3, 6)
        gated = wrapped(layer, None)
        assert torch.equal(gated(x), layer(x))
        assert list(gated.state_dict()) == ["linear.weight", "linear.bias"]

    def test_the_base_s_weights_are_still_found(self):
        layer = torch.nn.Linear(6, 10)
        gated = wrapped(layer, None)
        assert gated.weight is layer.weight
        assert gated.bias is layer.bias


class TestEmbedding:
    def test_ids_become_rows(self):
        layer = torch.nn.Embedding(9, 4)
        ids = torch.tensor([[3, 1, 3]])
        assert torch.equal(wrapped(layer, None)(ids), layer(ids))
        torch.testing.assert_close(wrapped(layer, FakeStep())(ids), layer(ids) + 1)
        assert wrapped(layer, None).weight is layer.weight

    def test_an_embedding_that_is_scaled_scales_the_step_s_part_too(self):
        class Scaled(torch.nn.Embedding):
            embed_scale = torch.tensor(5.0)

            def forward(self, ids):
                return super().forward(ids) * self.embed_scale

        layer = Scaled(9, 4)
        ids = torch.tensor([[3, 1, 3]])
        torch.testing.assert_close(wrapped(layer, FakeStep())(ids), layer(ids) + 5)

    def test_half_precision_scales_by_what_the_base_scales_by(self):
        layer = Gemma3TextScaledWordEmbedding(9, 4, 0, embed_scale=640**0.5).bfloat16()
        ids = torch.tensor([[3, 1, 3]])
        # 25.298 is 25.25 in this type.
        expected = layer(ids) + torch.tensor(9.0).bfloat16() * torch.tensor(25.25).bfloat16()
        assert torch.equal(wrapped(layer, FakeStep(amount=9.0))(ids), expected)

    def test_what_models_ask_an_embedding_about_is_the_base_s(self):
        layer = Gemma3TextScaledWordEmbedding(9, 4, 2, embed_scale=3.0)
        gated = wrapped(layer, None)
        assert (gated.padding_idx, gated.embedding_dim, gated.num_embeddings) == (2, 4, 9)
        assert gated.embed_scale is layer.embed_scale
        with pytest.raises(AttributeError):
            _ = gated.nothing_of_the_kind


@pytest.mark.parametrize("architecture", EXPERT_ARCHITECTURES)
class TestExperts:
    def _layer(self, architecture: str) -> Any:
        return make_model(architecture).model.layers[0].mlp

    def test_without_an_update_they_are_the_base_s(self, architecture):
        block = self._layer(architecture)
        x = torch.randn(1, 7, 32)
        expected = block(x)
        context = RocContext()
        wrap_layers(block, context, output_embedding=None)
        torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
        context.step = FakeStep(amount=0.0)  # type: ignore[assignment]
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)

    def test_each_expert_asks_for_the_tokens_that_chose_it(self, architecture):
        block = self._layer(architecture)
        step = FakeStep(amount=0.0)
        gated = wrapped(block.experts, step)
        choice = torch.tensor([[0, 2], [2, 3], [2, 0]])
        gated(torch.randn(3, 32), choice, torch.full((3, 2), 0.5))
        asked = {module_idx: tokens.tolist() for module_idx, tokens, _ in step.calls}
        of_expert = {0: [0, 2], 2: [0, 1, 2], 3: [1]}
        assert asked == {
            idx * len(EXPERT_PROJECTIONS) + place: tokens
            for idx, tokens in of_expert.items()
            for place in range(len(EXPERT_PROJECTIONS))
        }

    def test_layers_that_nobody_targets_are_not_asked(self, architecture):
        block = self._layer(architecture)
        step = FakeStep(only=frozenset({9}))
        gated = wrapped(block.experts, step)
        gated(torch.randn(3, 32), torch.tensor([[0, 2], [2, 3], [2, 0]]), torch.full((3, 2), 0.5))
        assert [module_idx for module_idx, _, _ in step.calls] == [9]
        step.only = frozenset({99})
        x, choice = torch.randn(3, 32), torch.tensor([[0, 2], [2, 3], [2, 0]])
        assert torch.equal(gated(x, choice, torch.full((3, 2), 0.5)), block.experts(x, choice, torch.full((3, 2), 0.5)))

    def test_a_router_chooses_by_the_updated_product(self, architecture):
        router = self._layer(architecture).gate
        gated = wrapped(router, None)
        x = torch.randn(5, 32)
        expected = router(x)
        for found, base in zip(gated(x), expected, strict=True):
            assert torch.equal(found, base)
        update = torch.randn(5, 4)

        class Update(FakeStep):
            def add(self, module_idx, x_TD, y_TO, **_):
                y_TO += update

        for step in (Update(), FakeStep(amount=0.0), Update()):
            gated._context.step = step
            bias = update if isinstance(step, Update) else torch.zeros(5, 4)
            logits = torch.nn.functional.linear(x, router.weight) + bias
            torch.testing.assert_close(gated(x)[0].reshape(5, 4), logits, rtol=1e-5, atol=1e-5)
        assert gated.weight is router.weight
        assert router.weight.shape == (4, 32)


class TestModels:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_indices_follow_the_list(self, architecture):
        model = make_model(architecture)
        listed = listed_modules(model)
        output = model.get_output_embeddings()
        assert wrap_layers(model, RocContext(), output_embedding=output) == listed
        assert len({shape.module_path for shape in listed}) == len(listed)
        assert model.get_output_embeddings().linear is output

    def test_only_the_output_embedding_sees_sampled_rows(self):
        model = make_model()
        context = RocContext()
        shapes = wrap_layers(model, context, output_embedding=model.get_output_embeddings())
        step = FakeStep(amount=0.0)
        context.step = step  # type: ignore[assignment]
        model(input_ids=torch.tensor([[3, 4, 5]]))
        sampled = {shapes[module_idx].module_path for module_idx, _, is_output in step.calls if is_output}
        assert sampled == {"lm_head"}
        assert len(step.calls) == len(shapes)
