"""Adapters that are made of others when a plan asks for it: a `ComponentSource` that merges on a miss.

What is merged is kept in main memory like any other adapter, and on the device by the engine's own rules. It goes when
one of its sources leaves the catalogue.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import UnknownAdapter
from hilora.plan_preparation import MergeRecipe, merged_adapter
from services.worker.infra.component_cache import ComponentCache
from services.worker.ports import ComponentSource, ComponentTierStats

_MAX_RECIPES = 65_536
"""Recipes that are remembered, some hundred bytes each; a worker has far fewer requests at once."""


class MergedComponents:
    """Implements `ComponentSource` and `AdapterMerger`. May be called from any thread.

    Args:
        source: of adapters that are not merged.
        capacity_bytes: of merged adapters in main memory.
        dtype: what they are kept in; None keeps float32.
    """

    def __init__(self, source: ComponentSource, *, capacity_bytes: int, dtype: torch.dtype | None = None) -> None:
        self._source = source
        self._recipes: OrderedDict[str, MergeRecipe] = OrderedDict()
        self._lock = threading.Lock()
        self._cache = ComponentCache(
            _Maker(source, self._recipe_of),
            capacity_bytes=capacity_bytes,
            dtype=dtype,
            is_current=self._is_known,
        )

    def stats(self) -> ComponentTierStats:
        """Merged adapters in main memory now, and totals."""
        return self._cache.stats()

    def announce(self, recipe: MergeRecipe) -> None:
        """See `AdapterMerger`."""
        with self._lock:
            self._recipes[recipe.adapter_id] = recipe
            self._recipes.move_to_end(recipe.adapter_id)
            while len(self._recipes) > _MAX_RECIPES:
                self._recipes.popitem(last=False)

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`."""
        return (self._cache if self._is_known(adapter_id) else self._source).fetch(adapter_id, basis)

    def forget(self, adapter_id: str) -> list[str]:
        """Drop everything that is made of an adapter that left the catalogue; returns the identities."""
        with self._lock:
            made_of_it = [
                recipe.adapter_id
                for recipe in self._recipes.values()
                if any(source_id == adapter_id for source_id, _ in recipe.sources)
            ]
            for merged_id in made_of_it:
                del self._recipes[merged_id]
        for merged_id in made_of_it:
            self._cache.forget(merged_id)
        return made_of_it

    def _is_known(self, adapter_id: str) -> bool:
        return adapter_id in self._recipes

    def _recipe_of(self, adapter_id: str) -> MergeRecipe | None:
        return self._recipes.get(adapter_id)


class _Maker:
    """Makes what a recipe says.

    Args:
        source: of the recipe's adapters.
        recipe_of: knows the recipes.
    """

    def __init__(self, source: ComponentSource, recipe_of: Callable[[str], MergeRecipe | None]) -> None:
        self._source = source
        self._recipe_of = recipe_of

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        """See `ComponentSource`. Plans ask for merged adapters in the trained basis, the one they are made in."""
        recipe = self._recipe_of(adapter_id)
        if recipe is None or basis is not RocBasis.TRAINED:
            raise UnknownAdapter(
                f"Nothing is known of the merged adapter {adapter_id} in the {basis} basis (any more).",
                remedy="Route the request again.",
                place=adapter_id,
            )
        sources = [self._source.fetch(source_id, RocBasis.TRAINED) for source_id, _ in recipe.sources]
        return merged_adapter(recipe, sources)
