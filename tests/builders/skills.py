"""A pool of adapters for one skill each, and one for two of them, told apart by how their tasks are worded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from hilora.character_grams import SampleGrams
from hilora.fitted_pool import AdapterProfile

SKILLS: Mapping[str, str] = MappingProxyType(
    {
        "reverse": "reverse the letters and write them backwards",
        "sort": "sort the letters into ascending order",
        "next": "replace the letters each by its successor",
        "double": "duplicate every letter so that it appears twice",
        "swap": "swap neighbouring letters in pairs",
        "mirror": "mirror the letters into a symmetric palindrome",
        "drop": "delete the leading one of the letters",
        "sort-then-double": "sort the letters into ascending order and then duplicate each so that it appears twice",
    }
)


def worded(instruction: str, number: int) -> str:
    """A text that asks for something, with some letters to do it to."""
    letters = np.random.default_rng(number).integers(97, 123, size=4)
    return f"{instruction} : {' '.join(map(chr, letters))} ="


def sample_grams(name: str, num_samples: int = 12) -> SampleGrams:
    """How a skill's samples are written."""
    return SampleGrams.of([worded(SKILLS[name], 100 * len(name) + number) for number in range(num_samples)])


def skill_profiles(num_samples: int = 12) -> list[AdapterProfile]:
    """The pool, each adapter in a corner of its own."""
    rng = np.random.default_rng(0)
    profiles = []
    for name in SKILLS:
        vectors = 3.0 * rng.standard_normal(32) + rng.standard_normal((num_samples, 32))
        profiles.append(
            AdapterProfile(
                adapter_id=f"{name}@1",
                adapter_name=name,
                lora_rank=8,
                samples_ME=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
                grams=sample_grams(name, num_samples),
            )
        )
    return profiles


def nowhere(seed: int = 5) -> np.ndarray:
    """An embedding far from every adapter."""
    z_E = np.random.default_rng(seed).standard_normal(32)
    return (z_E / np.linalg.norm(z_E)).astype(np.float32)
