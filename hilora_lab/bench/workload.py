"""What the benchmark serves: adapters, the plans of requests, and their prompts. All from one seed.

Plans are made by the router's own arithmetic under its default settings, from random posteriors that leave three
candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.budget_allocation import candidate_weights, largest_remainder_counts, total_budget, variance_factor
from hilora.errors import UnknownAdapter
from hilora.routing_plan import GateParameters, RocBudget, RoutingPlan
from hilora.routing_settings import RoutingSettings
from hilora.target_layer import target_features

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Last names of a decoder block's linear layers."""
LORA_RANK = 8
NUM_ADAPTERS = 20
NUM_CANDIDATES = 3
NUM_PLANS = 32
_SPECTRUM_DECAY = 0.8
"""Each component of a module is so much weaker than the one before: the shape of an SVD basis."""
_SCALE = 0.02
"""Size of an adapter's entries: its output stays a correction to the base's."""

Features = Mapping[str, tuple[int, int]]
"""`(out-features, in-features)` by module path."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Adapters of one model, and plans over them."""

    adapters: Mapping[str, DecomposedAdapter]
    plans: tuple[RoutingPlan, ...]

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """The workload as a `ComponentSource`: everything is in memory.

        Raises:
            UnknownAdapter: no such adapter in this basis.
        """
        adapter = self.adapters.get(adapter_id)
        if adapter is None or adapter.basis is not basis:
            raise UnknownAdapter(f"No adapter {adapter_id} in the {basis} basis.")
        return adapter


def build_workload(model: nn.Module, *, num_adapters: int = NUM_ADAPTERS, seed: int = 0) -> Workload:
    """Adapters on all linear layers of a model's blocks, and `NUM_PLANS` different plans."""
    features = features_of(model, ALL_LINEARS)
    adapter_ids = [adapter_id(idx) for idx in range(num_adapters)]
    rng = np.random.default_rng(seed)
    plans: dict[str, RoutingPlan] = {}
    while len(plans) < NUM_PLANS:
        chosen = rng.choice(num_adapters, size=NUM_CANDIDATES, replace=False)
        plan = make_plan([adapter_ids[idx] for idx in chosen], rng)
        plans[plan.digest] = plan
    return Workload(
        adapters={name: random_adapter(features, seed=seed * 10_000 + idx) for idx, name in enumerate(adapter_ids)},
        plans=tuple(plans.values()),
    )


def adapter_id(idx: int) -> str:
    """Name of the adapter at an index; also a valid name for PEFT."""
    return f"adapter-{idx}"


def features_of(model: nn.Module, names: Sequence[str]) -> Features:
    """The layers of a model whose path ends in one of the names."""
    endings = tuple(f".{name}" for name in names)
    return {path: features for path, features in target_features(model).items() if path.endswith(endings)}


def random_adapter(features: Features, *, seed: int, lora_rank: int = LORA_RANK) -> DecomposedAdapter:
    """A random adapter over some layers, its components ordered by falling energy."""
    generator = torch.Generator().manual_seed(seed)
    strengths_R1 = _SPECTRUM_DECAY ** torch.arange(lora_rank)[:, None]
    modules = {
        path: RankOneComponents(
            a_RD=torch.randn(lora_rank, num_in, generator=generator) * (_SCALE * strengths_R1),
            b_RO=torch.randn(lora_rank, num_out, generator=generator) * _SCALE,
        )
        for path, (num_out, num_in) in features.items()
    }
    return DecomposedAdapter(basis=RocBasis.SVD, modules=modules)


def adapter_bytes(features: Features, *, lora_rank: int = LORA_RANK, itemsize: int = 4) -> int:
    """Bytes of the components of such an adapter."""
    return lora_rank * itemsize * sum(num_in + num_out for num_out, num_in in features.values())


def make_plan(adapter_ids: Sequence[str], rng: np.random.Generator, *, lora_rank: int = LORA_RANK) -> RoutingPlan:
    """What the router grants some candidates under its defaults, for a random posterior."""
    settings = RoutingSettings()
    posterior_C = np.sort(rng.dirichlet(np.ones(len(adapter_ids))))[::-1]
    while posterior_C[:-1].sum() >= settings.candidate_mass:
        posterior_C = np.sort(rng.dirichlet(np.ones(len(adapter_ids))))[::-1]
    ranks = [lora_rank] * len(adapter_ids)
    budget = total_budget(ranks, gamma=settings.gamma, confidence_following=settings.confidence_following)
    counts = largest_remainder_counts(ranks, shares_C=posterior_C, budget=budget)
    weights = candidate_weights(posterior_C, rule=settings.weight_rule)
    return RoutingPlan(
        budgets=tuple(
            RocBudget(adapter_id=name, adapter_name=name, lora_rank=rank, num_rocs=count, weight=weight)
            for name, rank, count, weight in zip(adapter_ids, ranks, counts, weights, strict=True)
        ),
        gate=GateParameters(
            score=settings.roc_score,
            scope=settings.gate_scope,
            basis=settings.basis,
            eta=variance_factor(ranks, budget=budget, rule=settings.eta_rule),
        ),
    )


def random_prompts(num_prompts: int, *, length: int, vocab_size: int, seed: int) -> list[tuple[int, ...]]:
    """Prompts of one length, without special tokens."""
    rng = np.random.default_rng(seed)
    return [tuple(int(token) for token in row) for row in rng.integers(3, vocab_size, size=(num_prompts, length))]
