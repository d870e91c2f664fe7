"""Counts which components of a plan act, token by token, beside the step that makes them act.

Shapes: T rows of a layer, D in-features, O out-features, R components of the plan's adapters in one layer side by side.

A gated layer asks the step of its context to add what the components make. `CountingStep` stands between the two: it
works out once more, in the plainest form, which components the plan's gate lets act on these inputs, and has the real
step add them. So nothing is added to a step that nobody counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hilora.routing_plan import GateRule, RoutingPlan
from hilora.token_gating import active_rocs_mask, module_gate
from services.worker.lora.gating.adaptive_segment import AdaptiveSegment
from services.worker.lora.gating.batch_plan import StepWork
from services.worker.lora.gating.gate_tables import PlanTable, StepTable, plan_table
from services.worker.lora.gating.layer_inputs import DenseInputs, LayerInputs, TokenIdInputs
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.roc_pool import RocPool


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterGating:
    """How often an adapter's components acted in one layer."""

    adapter_id: str
    num_tokens_fired: tuple[int, ...]
    """For each of its components there, the tokens at which it acted; in the order of the plan's basis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleGating:
    """Which components of one layer acted."""

    module_path: str
    adapters: tuple[AdapterGating, ...]
    """Those of the plan's adapters that have a budget and components in this layer, in the plan's order."""


class GatingCounter:
    """Counts for one plan, over as many steps as it takes.

    Args:
        plan: not base-only; its adapters are committed, and stay so.
        pool: where they are. They may move between steps.
        gates: where the plan's learned gate is, if it has one.
        dtype: of the model's activations.
        device: the model's.
    """

    def __init__(
        self, plan: RoutingPlan, pool: RocPool, gates: LearnedGates, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._plan = replace(plan, budgets=tuple(budget for budget in plan.budgets if budget.num_rocs > 0))
        self._pool = pool
        self._gates = gates
        self._dtype = dtype
        self._device = device
        self._table: PlanTable = plan_table(plan, pool)
        # From the beginning for every layer: an expert that no token chose has counts, too.
        self._counts = {
            int(module_idx): torch.zeros(sum(self._num_rocs(int(module_idx))), dtype=torch.int64, device=device)
            for module_idx in np.flatnonzero(self._table.is_targeted_M)
        }

    def counting(self, step: StepWork) -> CountingStep:
        """A step in the place of another one, which does the work. Good while nothing in the pool moves."""
        adaptive = None
        if self._plan.gate.rule is not GateRule.ROCS:
            # One row stands for all: they have one plan.
            table = StepTable([self._table], np.zeros(1, dtype=np.int32), self._pool)
            adaptive = AdaptiveSegment(
                slice(0, 1), [self._plan], table, self._pool, self._gates, dtype=self._dtype, device=self._device
            )
        return CountingStep(step, self, adaptive)

    def count(self, module_idx: int, inputs: LayerInputs, num_rows: int, adaptive: AdaptiveSegment | None) -> None:
        """Count what acts on a layer's inputs. Nothing happens for layers that the plan does not target."""
        counts_R = self._counts.get(module_idx)
        if counts_R is None:
            return
        if adaptive is None:
            acting_R = self._num_kept(module_idx, inputs, num_rows)
        else:
            acting_TLS = adaptive.acting(module_idx, inputs)
            ranks = self._num_rocs(module_idx)
            by_adapter = acting_TLS.sum(dim=0)
            acting_R = torch.cat([by_adapter[place, :rank] for place, rank in enumerate(ranks)])
        counts_R += acting_R

    def result(self, module_paths: list[str]) -> tuple[ModuleGating, ...]:
        """What has been counted, layer by layer.

        Args:
            module_paths: of the model's layers, by module index.
        """
        return tuple(
            ModuleGating(module_path=module_paths[module_idx], adapters=self._by_adapter(module_idx, counts_R.tolist()))
            for module_idx, counts_R in self._counts.items()
        )

    def num_features(self, module_idx: int) -> int:
        """Width of a layer's inputs; of an embedding, the size of the vocabulary."""
        return self._pool.arena(module_idx).a_ND.shape[1]

    def _num_rocs(self, module_idx: int) -> list[int]:
        return [self._pool.module_ranks(key)[module_idx] for key in self._table.keys]

    def _num_kept(self, module_idx: int, inputs: LayerInputs, num_rows: int) -> torch.Tensor:
        gate = module_gate(self._plan, num_rocs=self._num_rocs(module_idx))
        if gate.is_full:
            return torch.full((sum(gate.num_rocs),), num_rows, dtype=torch.int64, device=self._device)
        rows = np.concatenate([self._pool.rows(key).of_module(module_idx) for key in self._table.keys])
        rows_R = torch.from_numpy(rows.astype(np.int64)).to(self._device)
        arena = self._pool.arena(module_idx)
        h_TR = inputs.products(arena.a_ND, rows_R)
        return active_rocs_mask(h_TR, gate=gate, b_norm_R=arena.b_norms_N[rows_R]).sum(dim=0)

    def _by_adapter(self, module_idx: int, counts: list[int]) -> tuple[AdapterGating, ...]:
        adapters: list[AdapterGating] = []
        first = 0
        for key, rank in zip(self._table.keys, self._num_rocs(module_idx), strict=True):
            if rank:
                fired = tuple(counts[first : first + rank])
                adapters.append(AdapterGating(adapter_id=key.adapter_id, num_tokens_fired=fired))
            first += rank
        return tuple(adapters)


def summed(plan: RoutingPlan, results: Sequence[tuple[ModuleGating, ...]]) -> tuple[ModuleGating, ...]:
    """What acted under a plan, from what acted in each of its phases.

    Args:
        plan: whose order the adapters have.
        results: of the phases; each knows its own adapters and their layers.
    """
    if len(results) == 1:
        return results[0]
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for result in results:
        for module in result:
            counts_of = modules.setdefault(module.module_path, {})
            for adapter in module.adapters:
                fired = adapter.num_tokens_fired
                before = counts_of.get(adapter.adapter_id, (0,) * len(fired))
                counts_of[adapter.adapter_id] = tuple(map(sum, zip(before, fired, strict=True)))
    return tuple(
        ModuleGating(
            module_path=path,
            adapters=tuple(
                AdapterGating(adapter_id=budget.adapter_id, num_tokens_fired=counts_of[budget.adapter_id])
                for budget in plan.budgets
                if budget.adapter_id in counts_of
            ),
        )
        for path, counts_of in modules.items()
    )


class CountingStep:
    """See `GatingCounter.counting`.

    Args:
        step: does the work; all of its rows with components have the counter's plan.
        counter: where counts go.
        adaptive: the plan's gate, where tokens choose among adapters.
    """

    def __init__(self, step: StepWork, counter: GatingCounter, adaptive: AdaptiveSegment | None) -> None:
        self._step = step
        self._counter = counter
        self._adaptive = adaptive

    def add(
        self,
        module_idx: int,
        x_TD: torch.Tensor,
        y_TO: torch.Tensor,
        *,
        is_output_embedding: bool = False,
        token_idx_T: torch.Tensor | None = None,
    ) -> None:
        """See `StepWork`."""
        if len(x_TD):
            self._counter.count(module_idx, DenseInputs(x_TD), len(x_TD), self._adaptive)
        self._step.add(module_idx, x_TD, y_TO, is_output_embedding=is_output_embedding, token_idx_T=token_idx_T)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `StepWork`."""
        inputs = TokenIdInputs(token_ids_T, num_features=self._counter.num_features(module_idx))
        self._counter.count(module_idx, inputs, len(token_ids_T), self._adaptive)
        self._step.add_embedding(module_idx, token_ids_T, y_TO)

    def is_targeted(self, module_idx: int) -> bool:
        """See `StepWork`."""
        return self._step.is_targeted(module_idx)

    def has_targets(self, module_idxs: slice) -> bool:
        """See `StepWork`."""
        return self._step.has_targets(module_idxs)
