"""Plans whose adapters are made into something else before the first token: what is left is an ordinary plan.

    fusion, lego   one adapter takes the place of all. Its identity is a hash of what it is made of, so that whoever
                   keeps adapters by identity (device memory, tables, prefix caches) keeps it like any other.
    logo           the strongest reactions answer, at weights s_i / sum s_j.

Shapes: D in-features of a layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hilora.adapter import DecomposedAdapter, RankOneComponents, RocBasis
from hilora.merging import cluster_components, fuse
from hilora.routing_plan import PlanPreparation, PreparationMethod, RocBudget, RoutingPlan

_QUERY_NAMES = ("q_proj", "query", "q_lin", "query_key_value", "qkv_proj", "c_attn", "q", "SelfAttention.q")
"""Last parts of the paths of query projections, the separate ones first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeRecipe:
    """What a merged adapter is made of, in an order that does not depend on the plan's."""

    adapter_id: str
    """Of the merged adapter."""
    preparation: PlanPreparation
    sources: tuple[tuple[str, float], ...]
    """Identity and weight of each adapter, by identity."""
    lora_rank: int
    """Of the merged adapter: components in a layer, at most."""


def merge_recipe(plan: RoutingPlan) -> MergeRecipe:
    """How a plan's adapters become one.

    Raises:
        ValueError: a plan that is not to be merged, or without adapters.
    """
    preparation = plan.preparation
    if preparation is None or not preparation.method.is_merge or not plan.budgets:
        raise ValueError("the plan merges nothing")
    sources = tuple(sorted((budget.adapter_id, budget.weight) for budget in plan.budgets))
    largest = max(budget.lora_rank for budget in plan.budgets)
    is_lego = preparation.method is PreparationMethod.LEGO
    lora_rank = preparation.num_kept if is_lego and preparation.num_kept else largest
    contents = json.dumps([preparation.method.value, lora_rank, sources])
    digest = hashlib.sha256(contents.encode()).hexdigest()[:32]
    return MergeRecipe(
        adapter_id=f"merged-{preparation.method.value}@{digest}",
        preparation=preparation,
        sources=sources,
        lora_rank=lora_rank,
    )


def merged_adapter(recipe: MergeRecipe, adapters: Sequence[DecomposedAdapter]) -> DecomposedAdapter:
    """Make it.

    Args:
        recipe: of the merged adapter.
        adapters: its sources in the recipe's order, in the trained basis.
    """
    weights = [weight for _, weight in recipe.sources]
    if recipe.preparation.method is PreparationMethod.FUSION:
        return fuse(adapters, weights=weights)
    return cluster_components(adapters, weights=weights, num_rocs=recipe.lora_rank)


def merged_plan(plan: RoutingPlan, recipe: MergeRecipe) -> RoutingPlan:
    """The plan with the merged adapter in the place of its sources."""
    budget = RocBudget(
        adapter_id=recipe.adapter_id,
        adapter_name="+".join(budget.adapter_name for budget in plan.budgets),
        lora_rank=recipe.lora_rank,
        num_rocs=recipe.lora_rank,
    )
    gate = replace(plan.gate, basis=RocBasis.TRAINED)
    return replace(plan, budgets=(budget,), gate=gate, preparation=None)


def asked_module(module_paths: Sequence[str], adapters: Sequence[DecomposedAdapter]) -> str | None:
    """Which layer LoGo listens to: the last query projection that one of the adapters touches, or else the last layer
    that one of them does; None if no layer is.

    Args:
        module_paths: of the model, in its order.
        adapters: those that are asked.
    """
    touched = [path for path in module_paths if any(path in adapter.modules for adapter in adapters)]
    for name in _QUERY_NAMES:
        found = [path for path in touched if path == name or path.endswith(f".{name}")]
        if found:
            return found[-1]
    return touched[-1] if touched else None


def reaction(rocs: RankOneComponents | None, x_D: torch.Tensor) -> float:
    """`||B A x||` of an adapter in one layer; 0 for one that does not touch it."""
    if rocs is None:
        return 0.0
    h_R = rocs.a_RD.double() @ x_D.double()
    return float(torch.linalg.vector_norm(h_R @ rocs.b_RO.double()))


def asked_plan(plan: RoutingPlan, reactions: Mapping[str, float]) -> RoutingPlan:
    """The plan of those that react most strongly (LoGo); among equals the one that comes first in the plan.

    Args:
        plan: with everybody who was asked.
        reactions: lengths by adapter identity. Where nobody reacts, the first few answer in equal parts.
    """
    assert plan.preparation is not None, "nobody was to be asked"
    num_kept = plan.preparation.num_kept or len(plan.budgets)
    strongest = sorted(plan.budgets, key=lambda budget: -reactions[budget.adapter_id])[:num_kept]
    total = sum(reactions[budget.adapter_id] for budget in strongest)
    budgets = tuple(
        replace(budget, weight=reactions[budget.adapter_id] / total if total > 0 else 1.0 / len(strongest))
        for budget in strongest
    )
    return replace(plan, budgets=budgets, preparation=None)
