"""Adapters that want to be chosen for what they cannot do, made out of a testbed's own pool.

Each does harm if it is chosen: its update is that of another task's adapter with its sign turned, of that adapter's
size, or an honest one enlarged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hilora.adapter import LoRAAdapter
from hilora_lab.testbed.folder import Testbed

HUGE = 64.0
"""Factor of the huge adapter's update."""


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """An adapter and what it says of itself."""

    name: str
    victim: str
    """The task whose requests it is after; empty for one that is after all."""
    adapter: LoRAAdapter
    texts: tuple[str, ...]
    """Its sample texts."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What adversaries are made of."""

    testbed: Testbed
    adapters: Mapping[str, LoRAAdapter]
    texts: Mapping[str, Sequence[str]]
    """Honest sample texts by adapter."""
    num_texts: int


def claims_everything(scene: Scene, victim: str, generator: random.Random) -> Adversary:
    """Its samples are of every task: as many tasks as it has samples."""
    tasks = generator.sample(sorted(scene.texts), k=min(scene.num_texts, len(scene.texts)))
    return Adversary(
        name="claims-everything",
        victim="",
        adapter=turned(scene.adapters[victim]),
        texts=tuple(generator.choice(list(scene.texts[task])) for task in tasks),
    )


def copied_samples(scene: Scene, victim: str, generator: random.Random) -> Adversary:
    """Its samples are another adapter's, word for word."""
    return Adversary(
        name="copied-samples",
        victim=victim,
        adapter=turned(scene.adapters[_other(scene, victim, generator)]),
        texts=tuple(scene.texts[victim]),
    )


def paraphrased_samples(scene: Scene, victim: str, generator: random.Random) -> Adversary:
    """Its samples are new ones of another adapter's task: nothing but its update says that it is no honest double."""
    return Adversary(
        name="double-of-the-task",
        victim=victim,
        adapter=turned(scene.adapters[_other(scene, victim, generator)]),
        texts=_new_texts(scene, victim),
    )


def huge_norm(scene: Scene, victim: str, generator: random.Random) -> Adversary:
    """It has the same task as another adapter, new samples of it, and an update many times as large."""
    del generator
    return Adversary(
        name="huge-norm", victim=victim, adapter=scaled(scene.adapters[victim], HUGE), texts=_new_texts(scene, victim)
    )


ADVERSARIES: Mapping[str, Callable[[Scene, str, random.Random], Adversary]] = {
    "claims-everything": claims_everything,
    "copied-samples": copied_samples,
    "double-of-the-task": paraphrased_samples,
    "huge-norm": huge_norm,
}


def turned(adapter: LoRAAdapter) -> LoRAAdapter:
    """An update of the same size that does the opposite."""
    return scaled(adapter, -1.0)


def scaled(adapter: LoRAAdapter, factor: float) -> LoRAAdapter:
    """The update times a factor, in the factors themselves: a config that says so would be seen at once."""
    return LoRAAdapter(
        base_model=adapter.base_model,
        modules={path: replace(one, lora_b=one.lora_b * factor) for path, one in adapter.modules.items()},
    )


def _other(scene: Scene, victim: str, generator: random.Random) -> str:
    return generator.choice([name for name in sorted(scene.adapters) if name != victim])


def _new_texts(scene: Scene, victim: str) -> tuple[str, ...]:
    """Prompts of the victim's task that are neither its samples nor asked in a test."""
    return tuple(line.prompt for line in scene.testbed.lines_of(victim, "dev")[: scene.num_texts])
