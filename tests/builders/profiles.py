"""Pools of adapters as the router sees them: clusters of unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hilora.sequence_routing import AdapterProfile


def clustered_samples(
    *, num_samples: Sequence[int], dimension: int = 24, spread: float = 0.5, seed: int = 0
) -> list[NDArray[np.float32]]:
    """One `[m_i, E]` block of unit vectors per adapter, around random centres."""
    rng = np.random.default_rng(seed)
    blocks: list[NDArray[np.float32]] = []
    for count in num_samples:
        center = rng.normal(size=dimension)
        block = center / np.linalg.norm(center) + spread * rng.normal(size=(count, dimension)) / dimension**0.5
        blocks.append((block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float32))
    return blocks


def clustered_profiles(
    *,
    num_samples: Sequence[int],
    dimension: int = 24,
    spread: float = 0.5,
    seed: int = 0,
    lora_ranks: Sequence[int] | None = None,
) -> list[AdapterProfile]:
    """Profiles `task-00`, `task-01`, ... over `clustered_samples`; rank 8 unless given."""
    blocks = clustered_samples(num_samples=num_samples, dimension=dimension, spread=spread, seed=seed)
    ranks = lora_ranks or [8] * len(blocks)
    return [
        AdapterProfile(
            adapter_id=f"task-{place:02}@0123456789ab",
            adapter_name=f"task-{place:02}",
            lora_rank=rank,
            samples_ME=block,
        )
        for place, (block, rank) in enumerate(zip(blocks, ranks, strict=True))
    ]
