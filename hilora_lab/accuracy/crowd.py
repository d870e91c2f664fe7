"""Strangers for a pool: adapters that nobody trained, described as if their tasks were like the pool's.

Shapes: L adapters, M samples, E embedding dimension, N all samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hilora.adapter import adapter_id_of
from hilora.sequence_routing import AdapterProfile

_MOVED = 0.25


def crowded(profiles: Mapping[str, AdapterProfile], *, size: int, seed: int) -> dict[str, AdapterProfile]:
    """A pool of a size: some of these adapters where they are too many, strangers added where they are too few.

    A stranger's mean is a random mixture of two adapters' means, moved by a quarter of the means' spread; its samples
    scatter around it as a random adapter's do around their own mean. So strangers lie between the tasks that are asked
    for, and some very close to one.
    """
    generator = np.random.default_rng(seed)
    names = sorted(profiles)
    if size <= len(names):
        kept = sorted(generator.choice(len(names), size=size, replace=False).tolist())
        return {names[idx]: profiles[names[idx]] for idx in kept}
    means_LE = np.stack([profiles[name].samples_ME.mean(axis=0, dtype=np.float64) for name in names])
    spread_E = means_LE.std(axis=0)
    pool = dict(profiles)
    for idx in range(size - len(names)):
        first, second, model = generator.integers(len(names), size=3)
        share = generator.uniform()
        samples_ME = profiles[names[model]].samples_ME
        mean_E = share * means_LE[first] + (1.0 - share) * means_LE[second] + generator.normal(0.0, _MOVED * spread_E)
        moved_ME = mean_E + samples_ME - means_LE[model]
        unit_ME = moved_ME / np.linalg.norm(moved_ME, axis=1, keepdims=True)
        name = f"stranger-{idx}"
        pool[name] = AdapterProfile(
            adapter_id=adapter_id_of(name, "stranger"),
            adapter_name=name,
            lora_rank=profiles[names[model]].lora_rank,
            samples_ME=unit_ME.astype(np.float32),
        )
    return pool
