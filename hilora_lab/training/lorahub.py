"""LoraHub (arXiv 2307.13269): factors of adapters from a few examples, without gradients.

    minimise over w in [-1.5, 1.5]^N:   mean loss of the examples' answers + 0.05 sum |w|        [paper]

The paper searches with nevergrad. Its last release is a year and a half old, and it brings pandas and a Bayesian
optimiser for what it does here: for twenty bounded numbers and some tens of evaluations its own choice is a CMA-ES.
That is `cma`, by the method's author, without further dependencies.

The outputs of the adapters are mixed, as the strategy `lorahub` serves them; the paper mixes their factors.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hilora.adapter import LoRAAdapter
from hilora.errors import InvalidInput
from hilora_lab.testbed.batches import TokenizedExample, answer_loss, collate
from hilora_lab.training.trainable_layers import TrainableLayers

_BOUND = 1.5
_PENALTY = 0.05

OnProgress = Callable[[int, int, float], None]
"""Called with the evaluations done, all of them, and the best value so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LorahubRecipe:
    """How factors are searched."""

    num_evaluations: int = 200
    """Forward passes over the examples. The paper's 40 are for examples of its size; here one costs milliseconds."""
    start: float = 0.0
    """Where every factor begins [paper]."""
    step: float = 0.3
    """How far the first samples lie from there."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedWeights:
    """What was found."""

    weights: Mapping[str, float]
    """Factor by adapter name."""
    loss: float
    """Mean loss of the examples' answers under them."""
    base_loss: float
    """The same without adapters."""


class _ConstantMixer:
    """The same factors for every token."""

    def __init__(self, weights_L: torch.Tensor) -> None:
        self.weights_L = weights_L

    def alphas(self, path: str, x_BTD: torch.Tensor, outputs_BTLO: torch.Tensor) -> torch.Tensor:
        """See `TokenMixer`."""
        del path
        return self.weights_L.to(x_BTD).expand(outputs_BTLO.shape[:3])


def draw_adapters(names: Iterable[str], num_drawn: int, *, seed: int) -> list[str]:
    """Which adapters take part: drawn by chance, as in the paper; all of them where there are no more."""
    ordered = sorted(names)
    return random.Random(seed).sample(ordered, min(num_drawn, len(ordered)))


def learn_weights(
    model: torch.nn.Module,
    adapters: Mapping[str, LoRAAdapter],
    examples: Sequence[TokenizedExample],
    *,
    recipe: LorahubRecipe | None = None,
    on_progress: OnProgress | None = None,
) -> LearnedWeights:
    """Search the factors that make a few examples likeliest.

    Args:
        model: the base, a transformers model.
        adapters: those that may take part, by name; at least two.
        examples: of one task.
        recipe: evaluations, seed.
        on_progress: told after each generation of samples.

    Raises:
        InvalidInput: `too_little_to_learn`: fewer than two adapters, or no examples.
    """
    import cma

    recipe = recipe or LorahubRecipe()
    names = sorted(adapters)
    if len(names) < 2 or not examples:
        raise InvalidInput(
            f"{len(names)} adapters and {len(examples)} examples are nothing to learn factors from.",
            code="too_little_to_learn",
            remedy="Give at least two adapters and one example.",
            place="examples",
        )
    batch = collate(examples)
    mixer = _ConstantMixer(torch.zeros(len(names)))
    with TrainableLayers(model, adapters) as layers, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # cma's remarks on its own defaults
        layers.mix(names, mixer)

        def loss_of(weights_L: NDArray[np.float64]) -> float:
            mixer.weights_L = torch.from_numpy(np.asarray(weights_L, dtype=np.float64))
            return float(answer_loss(model, batch))

        def value_of(weights_L: NDArray[np.float64]) -> float:
            return loss_of(weights_L) + _PENALTY * float(np.abs(weights_L).sum())

        start_L = np.full(len(names), recipe.start)
        best_L, best = start_L, value_of(start_L)
        # 0 would mean a seed from the clock.
        options = {"bounds": [-_BOUND, _BOUND], "seed": recipe.seed + 1, "verbose": -9}
        search: Any = cma.CMAEvolutionStrategy(start_L.tolist(), recipe.step, options)
        num_done = 1
        while num_done < recipe.num_evaluations and not search.stop():
            asked = search.ask()
            values = [value_of(np.asarray(weights_L)) for weights_L in asked]
            search.tell(asked, values)
            num_done += len(asked)
            lowest = int(np.argmin(values))
            if values[lowest] < best:
                best_L, best = np.asarray(asked[lowest]), values[lowest]
            if on_progress is not None:
                on_progress(num_done, recipe.num_evaluations, best)
        return LearnedWeights(
            weights={name: float(weight) for name, weight in zip(names, best_L, strict=True)},
            loss=loss_of(best_L),
            base_loss=loss_of(np.zeros(len(names))),
        )


def write_weights(learned: LearnedWeights, path: Path) -> None:
    """Write the factors as a router reads them (`HILORA_ROUTER_LORAHUB_WEIGHTS`)."""
    document = {"format": "hilora-weights", "version": 1, "weights": dict(learned.weights)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
