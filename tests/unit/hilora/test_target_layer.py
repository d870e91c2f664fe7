from __future__ import annotations

import pytest
import torch
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.pytorch_utils import Conv1D

from hilora.target_layer import LayerKind, target_features, target_layers


class LooksLinear(torch.nn.Module):
    """What a quantised layer comes to: widths, and no weight that could be multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 10
        self.register_buffer("packed", torch.zeros(15, dtype=torch.uint8))


class Normed(torch.nn.Embedding):
    def forward(self, input_ids):
        return torch.nn.functional.normalize(super().forward(input_ids), dim=-1)


class WithAnOddToken(torch.nn.Embedding):
    """Scaled, but for one token, as T5Gemma 2 has it."""

    embed_scale = 2.0

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.odd = torch.nn.Parameter(torch.zeros(4))

    def forward(self, input_ids):
        return torch.where(input_ids[..., None] == 3, self.odd, super().forward(input_ids) * self.embed_scale)


class ScaledByVector(torch.nn.Embedding):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.embed_scale = torch.ones(4)

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


class Experts(torch.nn.Module):
    def __init__(self, *, num_experts: int = 3, num_in: int = 8, inner: int = 5) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.zeros(num_experts, 2 * inner, num_in))
        self.down_proj = torch.nn.Parameter(torch.zeros(num_experts, num_in, inner))
        self.act_fn = torch.nn.SiLU()


class ExpertRouter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim, self.top_k = 3, 8, 2
        self.weight = torch.nn.Parameter(torch.zeros(3, 8))


def kinds(module: torch.nn.Module) -> list[LayerKind]:
    return [layer.kind for layer in target_layers(torch.nn.ModuleDict({"layer": module}))]


class TestKinds:
    @pytest.mark.parametrize(
        ("module", "kind", "features"),
        [
            (torch.nn.Linear(6, 10), LayerKind.LINEAR, (10, 6)),
            (LooksLinear(), LayerKind.LINEAR, (10, 6)),
            (Conv1D(10, 6), LayerKind.LINEAR, (10, 6)),
            (torch.nn.Embedding(96, 8), LayerKind.EMBEDDING, (8, 96)),
            (ExpertRouter(), LayerKind.EXPERT_ROUTER, (3, 8)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_layer_is_known_by_how_it_looks(self, module, kind, features):
        assert kinds(module) == [kind]
        assert target_features(torch.nn.ModuleDict({"layer": module})) == {"layer": features}

    @pytest.mark.parametrize(
        "module",
        [torch.nn.LayerNorm(6), torch.nn.Conv1d(6, 10, 1), torch.nn.Bilinear(3, 4, 5), torch.nn.SiLU()],
        ids=lambda module: type(module).__name__,
    )
    def test_others_carry_nothing(self, module):
        assert kinds(module) == []


class TestEmbeddings:
    @pytest.mark.parametrize("scale", [3.0, 2, torch.tensor(3.0)])
    def test_one_that_multiplies_by_a_number_counts(self, scale):
        class Scaled(torch.nn.Embedding):
            embed_scale = scale

            def forward(self, input_ids):
                return super().forward(input_ids) * self.embed_scale

        assert kinds(Scaled(9, 4)) == [LayerKind.EMBEDDING]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: OPTLearnedPositionalEmbedding(9, 4),
            lambda: BartLearnedPositionalEmbedding(9, 4),
            lambda: MarianSinusoidalPositionalEmbedding(9, 4),
            lambda: WithAnOddToken(9, 4),
            lambda: Normed(9, 4),
            lambda: ScaledByVector(9, 4),
        ],
    )
    def test_one_that_makes_something_else_of_its_input_is_no_linear_layer(self, make):
        assert kinds(make()) == []


class TestExperts:
    def test_each_expert_has_four_layers(self):
        (layer,) = target_layers(torch.nn.ModuleDict({"experts": Experts()}))
        assert layer.kind is LayerKind.EXPERTS
        assert len(layer.features) == 12
        assert {path: shape for path, shape in layer.features.items() if path.startswith("experts.2.")} == {
            "experts.2.gate_up_proj": (10, 8),
            "experts.2.gate_proj": (5, 8),
            "experts.2.up_proj": (5, 8),
            "experts.2.down_proj": (8, 5),
        }

    @pytest.mark.parametrize(
        "flag",
        [
            {"is_transposed": True},
            {"has_bias": True},
            {"has_gate": False},
            {"is_concatenated": False},
            {"has_post_expert_norm": True},
        ],
        ids=lambda flag: next(iter(flag)),
    )
    def test_layouts_that_would_be_computed_otherwise_are_left_alone(self, flag):
        experts = Experts()
        for name, value in flag.items():
            setattr(experts, name, value)
        assert kinds(experts) == []

    def test_transposed_weights_are_left_alone(self):
        experts = Experts()
        experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj.transpose(1, 2))
        assert kinds(experts) == []


class TestOrder:
    def test_layers_come_as_the_model_lists_them_and_shared_ones_once(self):
        embedding = torch.nn.Embedding(9, 4)
        model = torch.nn.ModuleDict({"b": embedding, "a": torch.nn.Linear(4, 4), "c": embedding})
        assert list(target_features(model)) == ["b", "a"]
