"""Gates trained on a tiny model with random adapters: files, determinism, and that there is something to learn."""

from __future__ import annotations

import json

import pytest
import torch

from hilora.adapter import LoRAAdapter, LoRAFactors
from hilora.errors import InvalidInput
from hilora.learned_gate import LearnedGate
from hilora.routing_plan import GateRule
from hilora_lab.evaluation.gated_model import GatedModel
from hilora_lab.testbed.batches import TokenizedExample, answer_loss, collate
from hilora_lab.training.gate_file import write_gate
from hilora_lab.training.gate_training import GateRecipe, train_gate
from hilora_lab.training.token_mixers import RouterLora
from hilora_lab.training.trainable_layers import TrainableLayers
from services.worker.infra.gate_files import GateFiles
from tests.builders.gates import make_adaptive_plan
from tests.builders.models import linear_shapes, make_adapter, make_model

NAMES = ("one", "other", "third")
RECIPE = GateRecipe(num_steps=12, batch_size=8, learning_rate=0.05, router_rank=4, num_mixed=2, seed=3)


def pool() -> dict[str, LoRAAdapter]:
    shapes = linear_shapes(make_model(), suffixes=("q_proj", "down_proj"))
    found = {}
    for seed, name in enumerate(NAMES):
        rocs = make_adapter(shapes, rank=2 + seed, seed=seed).modules
        factors = {path: LoRAFactors(lora_a=one.a_RD, lora_b=one.b_RO.T / 2, scaling=2.0) for path, one in rocs.items()}
        found[name] = LoRAAdapter(base_model=None, modules=factors)
    return found


def examples() -> dict[str, list[TokenizedExample]]:
    """Answers as each adapter gives them: the gate has something to find."""
    adapters = pool()
    model = GatedModel(make_model(), adapters)
    found: dict[str, list[TokenizedExample]] = {}
    for place, name in enumerate(NAMES):
        plan = make_adaptive_plan(GateRule.ARROW, [(name, adapters[name].lora_rank, 1.0)])
        found[name] = []
        for seed in range(6):
            prompt = torch.randint(3, 96, (1, 5), generator=torch.Generator().manual_seed(100 * place + seed))
            answer = model.logits(plan, prompt)[0, -1].argmax()
            found[name].append(TokenizedExample(prompt_ids=tuple(prompt[0].tolist()), answer_ids=(int(answer),)))
    return found


def trained(method, **changes) -> LearnedGate:
    ids = {name: f"{name}@1" for name in NAMES}
    return train_gate(method, make_model(), pool(), examples(), adapter_ids=ids, recipe=RECIPE, **changes)


class TestTraining:
    def test_ramole_learns_to_choose(self):
        losses: list[float] = []
        gate = trained("ramole", on_progress=lambda _done, _total, loss: losses.append(loss))
        assert gate.rule is GateRule.RAMOLE
        assert len(losses) == RECIPE.num_steps
        model, adapters, asked = make_model(), pool(), examples()
        batch = collate([example for of_task in asked.values() for example in of_task])

        def loss_under(router: RouterLora) -> float:
            with TrainableLayers(model, adapters) as layers, torch.no_grad():
                layers.mix(NAMES, router)
                return float(answer_loss(model, batch))

        features = {path: (one.router_a_GD.shape[1], len(one.router_b_OG)) for path, one in gate.modules.items()}
        untrained = RouterLora(features, rank=4, generator=torch.Generator().manual_seed(0))
        learned = RouterLora(features, rank=4, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for path, one in gate.modules.items():
                learned.router_a[path.replace(".", "/")].copy_(one.router_a_GD)
                learned.router_b[path.replace(".", "/")].copy_(one.router_b_OG)
        # Untrained it is the uniform mixture.
        assert loss_under(learned) < loss_under(untrained)

    def test_phatgoose_has_a_vector_for_each_adapter_where_it_has_factors(self):
        gate = trained("phatgoose")
        assert gate.rule is GateRule.PHATGOOSE
        for of_layer in gate.modules.values():
            assert set(of_layer.gates) == {f"{name}@1" for name in NAMES}
            assert all(vector.abs().max() > 0 for vector in of_layer.gates.values())

    @pytest.mark.parametrize("method", ["ramole", "phatgoose"])
    def test_a_seed_decides_everything_and_the_base_stays(self, method, tmp_path):
        before = {name: weight.clone() for name, weight in make_model().state_dict().items()}
        ids = {write_gate(trained(method), tmp_path, name="gate") for _ in range(2)}
        assert len(ids) == 1
        model = make_model()
        train_gate(method, model, pool(), examples(), adapter_ids={name: name for name in NAMES}, recipe=RECIPE)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

    def test_an_adapter_without_examples_is_named(self):
        with pytest.raises(InvalidInput, match="third") as raised:
            train_gate("ramole", make_model(), pool(), examples() | {"third": []}, adapter_ids={})
        assert raised.value.code == "no_gate_examples"


class TestMixing:
    def test_an_untrained_router_is_the_uniform_mixture_and_drops_whole_adapters(self):
        router = RouterLora({"x": (4, 3)}, rank=2, generator=torch.Generator().manual_seed(0))
        x_BTD, outputs_BTLO = torch.randn(2, 5, 4), torch.randn(2, 5, 3, 3)
        torch.testing.assert_close(router.alphas("x", x_BTD, outputs_BTLO), torch.full((2, 5, 3), 1 / 3))
        router.is_dropped_BL = torch.tensor([[True, False, False], [False, True, True]])
        alphas = router.alphas("x", x_BTD, outputs_BTLO)
        torch.testing.assert_close(alphas[0, 0], torch.tensor([0.0, 0.5, 0.5]))
        torch.testing.assert_close(alphas[1, 0], torch.tensor([1.0, 0.0, 0.0]))

    def test_hooks_leave_with_the_context(self):
        model, prompt = make_model(), torch.tensor([[5, 6, 7]])
        plain = model(input_ids=prompt).logits
        with TrainableLayers(model, pool()) as layers:
            router = RouterLora(
                {path: layers.features(path) for path in layers.paths}, rank=2, generator=torch.Generator()
            )
            layers.mix(NAMES, router)
            assert (model(input_ids=prompt).logits - plain).abs().max() > 1e-3
        assert torch.equal(model(input_ids=prompt).logits, plain)


@pytest.mark.parametrize("method", ["ramole", "phatgoose"])
def test_workers_find_the_file(method, tmp_path):
    gate = trained(method)
    gate_id = write_gate(gate, tmp_path, name="mine")
    found = GateFiles(tmp_path).fetch(gate_id)
    assert found.rule is gate.rule
    assert found.modules.keys() == gate.modules.keys()
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == json.dumps([f"{gate_id}.safetensors"])
