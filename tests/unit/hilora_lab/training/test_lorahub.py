from __future__ import annotations

import pytest
import torch

from hilora.errors import InvalidInput
from hilora_lab.testbed.batches import TokenizedExample
from hilora_lab.training.lorahub import LorahubRecipe, draw_adapters, learn_weights
from tests.builders.models import make_model
from tests.unit.hilora_lab.training import test_gate_training as gates


def examples_of(name: str) -> list[TokenizedExample]:
    return gates.examples()[name]


def test_the_factors_make_the_examples_likelier_within_the_bounds():
    recipe = LorahubRecipe(num_evaluations=90, seed=1)
    learned = learn_weights(make_model(), gates.pool(), examples_of("other"), recipe=recipe)
    assert set(learned.weights) == set(gates.NAMES)
    assert learned.loss < learned.base_loss
    assert all(abs(weight) <= 1.5 for weight in learned.weights.values())
    # The examples are the other one's answers.
    assert max(learned.weights, key=lambda name: learned.weights[name]) == "other"


def test_a_seed_decides_the_search():
    recipe = LorahubRecipe(num_evaluations=20, seed=5)
    once, twice = [learn_weights(make_model(), gates.pool(), examples_of("one"), recipe=recipe) for _ in range(2)]
    assert once == twice
    # The search needs no gradients, whoever comes after it may.
    assert torch.is_grad_enabled()


def test_it_is_never_worse_than_where_it_began():
    recipe = LorahubRecipe(num_evaluations=2, seed=0)
    learned = learn_weights(make_model(), gates.pool(), examples_of("one"), recipe=recipe)
    assert learned.loss + 0.05 * sum(map(abs, learned.weights.values())) <= learned.base_loss + 1e-6


def test_nothing_to_learn_from():
    adapters = gates.pool()
    for some, examples in (({"one": adapters["one"]}, examples_of("one")), (adapters, [])):
        with pytest.raises(InvalidInput) as raised:
            learn_weights(make_model(), some, examples)
        assert raised.value.code == "too_little_to_learn"


def test_who_takes_part_is_drawn_by_seed():
    names = [f"a{place}" for place in range(30)]
    assert draw_adapters(names, 5, seed=1) == draw_adapters(reversed(names), 5, seed=1)
    assert draw_adapters(names, 5, seed=1) != draw_adapters(names, 5, seed=2)
    assert sorted(draw_adapters(names, 99, seed=1)) == sorted(names)
