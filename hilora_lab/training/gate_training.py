"""Trains learned token gates on examples of a pool's tasks. Base and adapters stay as they are.

ramole      one gate for all: batches mix a few adapters, examples are of their tasks, and every example does without
each adapter with probability 1/2 (whole-LoRA dropout [paper]), so that the gate learns to use relatives
phatgoose   one vector per adapter and layer, each adapter by itself on its own examples
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hilora.adapter import LoRAAdapter
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.routing_plan import GateRule
from hilora_lab.testbed.batches import TokenizedExample, answer_loss, collate
from hilora_lab.training.token_mixers import RouterLora, SigmoidGate
from hilora_lab.training.trainable_layers import TrainableLayers

GateMethod = Literal["ramole", "phatgoose"]

OnProgress = Callable[[int, int, float], None]
"""Called with the steps done, all steps, and the last loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRecipe:
    """How a gate is trained."""

    num_steps: int = 120
    """Of RAMoLE in all; of PHATGOOSE for each adapter."""
    batch_size: int = 16
    learning_rate: float = 5e-3
    router_rank: int = 8
    """G of RAMoLE."""
    num_mixed: int = 4
    """Adapters that a batch of RAMoLE mixes."""
    dropout: float = 0.5
    """Share of these that an example does without."""
    seed: int = 0


def train_gate(
    method: GateMethod,
    model: torch.nn.Module,
    adapters: Mapping[str, LoRAAdapter],
    examples: Mapping[str, Sequence[TokenizedExample]],
    *,
    adapter_ids: Mapping[str, str],
    recipe: GateRecipe | None = None,
    on_progress: OnProgress | None = None,
) -> LearnedGate:
    """Train a gate.

    Args:
        method: which one.
        model: the base, a transformers model in single precision.
        adapters: the pool by name.
        examples: of each adapter's task, by its name.
        adapter_ids: by name: the versions that the gate is for. RAMoLE's belongs to none.
        recipe: steps, sizes, seed.
        on_progress: told of every step.

    Raises:
        InvalidInput: `no_gate_examples`: an adapter has none.
    """
    recipe = recipe or GateRecipe()
    without = sorted(name for name in adapters if not examples.get(name))
    if without or not adapters:
        raise InvalidInput(
            f"There are no examples for {', '.join(without) or 'any adapter'}.",
            code="no_gate_examples",
            remedy="Give every adapter of the pool examples of its task, or leave it out.",
            place="examples",
        )
    report = on_progress or (lambda *_: None)
    with TrainableLayers(model, adapters) as layers:
        if method == "ramole":
            return _trained_router(layers, model, examples, recipe, report)
        return _trained_vectors(layers, model, adapters, examples, adapter_ids, recipe, report)


def _trained_router(
    layers: TrainableLayers,
    model: torch.nn.Module,
    examples: Mapping[str, Sequence[TokenizedExample]],
    recipe: GateRecipe,
    report: OnProgress,
) -> LearnedGate:
    generator = torch.Generator().manual_seed(recipe.seed)
    draws = random.Random(recipe.seed)
    router = RouterLora(
        {path: layers.features(path) for path in layers.paths}, rank=recipe.router_rank, generator=generator
    )
    optimizer = torch.optim.AdamW(router.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    names = sorted(examples)
    for step in range(recipe.num_steps):
        mixed = draws.sample(names, min(recipe.num_mixed, len(names)))
        drawn = [draws.choice(examples[draws.choice(mixed)]) for _ in range(recipe.batch_size)]
        router.is_dropped_BL = _dropped(len(drawn), len(mixed), recipe.dropout, generator)
        layers.mix(mixed, router)
        loss = _step(model, drawn, optimizer, recipe, step)
        report(step + 1, recipe.num_steps, loss)
    modules: dict[str, GateTensors] = {}
    for path in layers.paths:
        router_a_GD, router_b_OG = router.tensors(path)
        modules[path] = GateTensors(router_a_GD=router_a_GD, router_b_OG=router_b_OG)
    return LearnedGate(rule=GateRule.RAMOLE, modules=modules)


def _trained_vectors(
    layers: TrainableLayers,
    model: torch.nn.Module,
    adapters: Mapping[str, LoRAAdapter],
    examples: Mapping[str, Sequence[TokenizedExample]],
    adapter_ids: Mapping[str, str],
    recipe: GateRecipe,
    report: OnProgress,
) -> LearnedGate:
    gates: dict[str, dict[str, torch.Tensor]] = {path: {} for path in layers.paths}
    for place, name in enumerate(sorted(adapters)):
        draws = random.Random(f"{recipe.seed}/{name}")
        touched = [path for path in layers.paths if path in adapters[name].modules]
        gate = SigmoidGate({path: layers.features(path) for path in layers.paths})
        optimizer = torch.optim.AdamW(gate.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
        layers.mix([name], gate)
        for step in range(recipe.num_steps):
            drawn = [draws.choice(examples[name]) for _ in range(recipe.batch_size)]
            loss = _step(model, drawn, optimizer, recipe, step)
            report(place * recipe.num_steps + step + 1, len(adapters) * recipe.num_steps, loss)
        for path in touched:
            gates[path][adapter_ids[name]] = gate.vector(path)
    modules = {path: GateTensors(gates=of_path) for path, of_path in gates.items() if of_path}
    return LearnedGate(rule=GateRule.PHATGOOSE, modules=modules)


def _step(
    model: torch.nn.Module,
    drawn: Sequence[TokenizedExample],
    optimizer: torch.optim.Optimizer,
    recipe: GateRecipe,
    step: int,
) -> float:
    optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1.0 - step / recipe.num_steps)
    loss = answer_loss(model, collate(drawn))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _dropped(num_examples: int, num_mixed: int, share: float, generator: torch.Generator) -> torch.Tensor:
    chance_BL = torch.rand(num_examples, num_mixed, generator=generator)
    is_dropped_BL = chance_BL < share
    # Whoever would be left with nobody keeps the luckiest.
    luckiest_B = chance_BL.argmax(dim=1)
    is_dropped_BL[torch.arange(num_examples), luckiest_B] = False
    return is_dropped_BL
