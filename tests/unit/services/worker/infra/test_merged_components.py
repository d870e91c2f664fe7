from __future__ import annotations

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.decomposition import delta_weight
from hilora.errors import UnknownAdapter
from hilora.merging import fuse
from hilora.plan_preparation import MergeRecipe, merge_recipe
from hilora.routing_plan import PlanPreparation, PreparationMethod, RocBudget, RoutingPlan
from services.worker.infra.merged_components import MergedComponents
from tests.builders.components import InMemoryComponentSource
from tests.builders.models import make_adapter

SHAPES = {"x": (6, 5), "y": (5, 5)}
ADAPTERS = {f"{name}@1": make_adapter(SHAPES, rank=3, seed=seed) for seed, name in enumerate("abc")}


def recipe(names: str = "ab") -> MergeRecipe:
    budgets = tuple(
        RocBudget(adapter_id=f"{name}@1", adapter_name=name, lora_rank=3, num_rocs=3, weight=0.5) for name in names
    )
    preparation = PlanPreparation(method=PreparationMethod.FUSION)
    return merge_recipe(RoutingPlan(budgets=budgets, preparation=preparation))


def merged(**changes) -> tuple[MergedComponents, InMemoryComponentSource]:
    source = InMemoryComponentSource(ADAPTERS)
    return MergedComponents(source, **{"capacity_bytes": 1 << 20, **changes}), source


def test_it_is_merged_once_and_kept():
    components, source = merged()
    components.announce(recipe())
    found = components.fetch(recipe().adapter_id, RocBasis.TRAINED)
    expected = fuse([ADAPTERS["a@1"], ADAPTERS["b@1"]], weights=[0.5, 0.5])
    for path, rocs in expected.modules.items():
        torch.testing.assert_close(delta_weight(found.modules[path]), delta_weight(rocs))
    assert source.num_fetches == 2
    components.fetch(recipe().adapter_id, RocBasis.TRAINED)
    assert source.num_fetches == 2
    assert components.stats().num_hits == 1


def test_other_adapters_pass_through():
    components, source = merged()
    assert components.fetch("a@1", RocBasis.TRAINED) is source.adapters["a@1"]


def test_without_room_it_is_merged_anew():
    components, source = merged(capacity_bytes=0)
    components.announce(recipe())
    for _ in range(2):
        components.fetch(recipe().adapter_id, RocBasis.TRAINED)
    assert source.num_fetches == 4


def test_it_goes_when_a_source_goes():
    components, _ = merged()
    for one in (recipe("ab"), recipe("bc")):
        components.announce(one)
        components.fetch(one.adapter_id, RocBasis.TRAINED)
    assert components.forget("a@1") == [recipe("ab").adapter_id]
    assert components.stats().num_adapters == 1
    with pytest.raises(UnknownAdapter):
        components.fetch(recipe("ab").adapter_id, RocBasis.TRAINED)
    components.fetch(recipe("bc").adapter_id, RocBasis.TRAINED)


def test_nobody_makes_it_in_another_basis():
    components, _ = merged()
    components.announce(recipe())
    with pytest.raises(UnknownAdapter, match="svd"):
        components.fetch(recipe().adapter_id, RocBasis.SVD)
