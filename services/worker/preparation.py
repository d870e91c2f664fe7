"""What a plan's adapters are made into before the first token: one adapter, or those that react to the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from hilora.adapter import DecomposedAdapter
from hilora.plan_preparation import asked_module, asked_plan, merge_recipe, merged_plan, reaction
from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.ports import AdapterMerger

_NUM_FETCHERS = 4
"""Adapters that are brought to main memory at a time to be asked."""


class PlanPreparer:
    """Turns plans that want something done first into ordinary ones.

    Args:
        engine: asks the base about prompts.
        merger: gives components, also of what is merged.
    """

    def __init__(self, *, engine: Engine, merger: AdapterMerger) -> None:
        self._engine = engine
        self._merger = merger
        # Threads of its own: a slow download must not keep prompts from being encoded.
        self._fetchers = ThreadPoolExecutor(max_workers=_NUM_FETCHERS, thread_name_prefix="asked-adapters")

    async def prepared(self, plan: RoutingPlan, token_ids: Sequence[int]) -> RoutingPlan:
        """The plan as the engine runs it; the same one if nothing is to be done.

        Args:
            plan: its adapters are in the catalogue.
            token_ids: the prompt.

        Raises:
            InvalidInput: see `Probes.ask`.
            QueueFull: too many prompts wait to be asked about.
            HiloraError: whatever a component source raises.
        """
        if plan.preparation is None or plan.is_base_only:
            return plan
        if plan.preparation.method.is_merge:
            recipe = merge_recipe(plan)
            self._merger.announce(recipe)
            # A source may have left and come back.
            self._engine.readmit(recipe.adapter_id)
            return merged_plan(plan, recipe)
        return await self._asked(plan, token_ids)

    async def _asked(self, plan: RoutingPlan, token_ids: Sequence[int]) -> RoutingPlan:
        module_paths = self._engine.probes.module_paths
        ids = [budget.adapter_id for budget in plan.budgets]
        loop = asyncio.get_running_loop()
        adapters = await asyncio.gather(
            *(
                loop.run_in_executor(self._fetchers, self._merger.fetch, adapter_id, plan.gate.basis)
                for adapter_id in ids
            )
        )
        module_path = asked_module(module_paths, adapters)
        if module_path is None:
            return asked_plan(plan, dict.fromkeys(ids, 0.0))
        x_D = await asyncio.wrap_future(self._engine.probes.ask(token_ids, module_path=module_path))
        lengths = await asyncio.to_thread(_reactions, adapters, module_path, x_D)
        return asked_plan(plan, dict(zip(ids, lengths, strict=True)))


def _reactions(adapters: Sequence[DecomposedAdapter], module_path: str, x_D: torch.Tensor) -> list[float]:
    return [reaction(adapter.modules.get(module_path), x_D) for adapter in adapters]
