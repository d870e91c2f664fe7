"""Rows of one plan whose tokens choose among its adapters themselves: dense products with the plan's own components.

Shapes: T rows, D in-features, O out-features, K selected rows, R the plan's components in a layer.

The gate reads every candidate's responses, so nothing is saved by keeping few; and what a step shares between plans of
rule `rocs` is not shared here, as each plan may read other inputs than the responses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import torch

from hilora.learned_gate import GateTensors
from hilora.routing_plan import RoutingPlan
from services.worker.lora.gating.adaptive_layers import AdaptiveLayer
from services.worker.lora.gating.layer_inputs import DenseInputs, LayerInputs, TokenIdInputs
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.roc_pool import RocPool

_MAX_CACHED_PLANS = 256
"""Plans whose layers are kept; each is a few hundred kilobytes for a model of two hundred layers."""


class AdaptivePlan:
    """A plan's gates by layer, made when a layer first asks. Good while the plan's adapters stay where they are.

    Args:
        plan: its rule is not `rocs`; its adapters are committed.
        pool: where they are.
        gates: where its learned gate is; None where no plan has one.
    """

    def __init__(self, plan: RoutingPlan, pool: RocPool, gates: LearnedGates | None) -> None:
        self.plan = plan
        self._pool = pool
        self._acting = [budget for budget in plan.budgets if budget.num_rocs > 0]
        self._keys = [RocKey(budget.adapter_id, plan.gate.basis) for budget in self._acting]
        self._ranks = [pool.module_ranks(key) for key in self._keys]
        self._learned: Mapping[int, GateTensors] = {}
        if plan.gate.rule.is_learned:
            assert gates is not None, "learned gates have no place here"
            self._learned = gates.of(plan).modules
        self._layers: dict[int, AdaptiveLayer | None] = {}

    @property
    def placements(self) -> tuple[int, ...]:
        """Changes when any of the plan's adapters moves."""
        return tuple(self._pool.placement(key) for key in self._keys)

    def layer(self, module_idx: int) -> AdaptiveLayer | None:
        """The gate of a layer; None if no adapter has components there.

        Raises:
            InvalidInput: `gate_shape_mismatch`.
        """
        if module_idx not in self._layers:
            self._layers[module_idx] = self._made(module_idx)
        return self._layers[module_idx]

    def _made(self, module_idx: int) -> AdaptiveLayer | None:
        there = [idx for idx, ranks in enumerate(self._ranks) if ranks[module_idx] > 0]
        if not there:
            return None
        num_rocs = tuple(self._ranks[idx][module_idx] for idx in there)
        rows = [self._pool.rows(self._keys[idx]).of_module(module_idx) for idx in there]
        arena = self._pool.arena(module_idx)
        return AdaptiveLayer(
            plan=replace(self.plan, budgets=tuple(self._acting[idx] for idx in there)),
            num_rocs=num_rocs,
            rows_R=torch.cat([torch.tensor(of_adapter, dtype=torch.int64) for of_adapter in rows]).to(arena.a_ND.device),
            arena=arena,
            learned=self._learned.get(module_idx),
        )


class AdaptivePlans:
    """The adaptive plans of recent steps.

    Args:
        pool: where the adapters are.
        gates: where learned gates are; None where no plan has one.
    """

    def __init__(self, pool: RocPool, gates: LearnedGates | None) -> None:
        self._pool = pool
        self._gates = gates
        self._num_gate_evictions = 0
        self._plans: OrderedDict[str, tuple[tuple[int, ...], AdaptivePlan]] = OrderedDict()

    def of(self, plan: RoutingPlan) -> AdaptivePlan:
        """The gates of a plan whose adapters are committed and whose learned gate is acquired."""
        self._forget_evicted()
        made_at, adaptive = self._plans.pop(plan.digest, (None, None))
        if adaptive is None or made_at != adaptive.placements:
            adaptive = AdaptivePlan(plan, self._pool, self._gates)
        self._plans[plan.digest] = (adaptive.placements, adaptive)
        while len(self._plans) > _MAX_CACHED_PLANS:
            self._plans.popitem(last=False)
        return adaptive

    def _forget_evicted(self) -> None:
        """Let go of learned gates that have left the device: their memory is somebody else's now."""
        if self._gates is None or self._gates.num_evictions == self._num_gate_evictions:
            return
        self._num_gate_evictions = self._gates.num_evictions
        for digest, (_, adaptive) in list(self._plans.items()):
            if not self._gates.is_loaded(adaptive.plan):
                del self._plans[digest]


class AdaptiveSegment:
    """Consecutive rows of one adaptive plan, decode tokens or prompt chunks.

    Args:
        rows: of the step.
        plan: their plan's gates.
        pool: where the components are.
    """

    def __init__(self, rows: slice, plan: AdaptivePlan, pool: RocPool) -> None:
        self.rows = rows
        self._plan = plan
        self._pool = pool

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        layer = self._plan.layer(module_idx)
        if layer is not None:
            self._apply(module_idx, layer, DenseInputs(x_TD), y_TO)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`: all rows are alike."""
        del row_idx_K
        self.add(module_idx, x_KD, y_KO)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        layer = self._plan.layer(module_idx)
        if layer is not None:
            num_features = self._pool.arena(module_idx).a_ND.shape[1]
            self._apply(module_idx, layer, TokenIdInputs(token_ids_T, num_features=num_features), y_TO)

    def _apply(self, module_idx: int, layer: AdaptiveLayer, inputs: LayerInputs, y_TO: torch.Tensor) -> None:
        arena = self._pool.arena(module_idx)
        h_TR = inputs.products(arena.a_ND, layer.rows_R)
        y_TO.addmm_(layer.gains(h_TR, inputs, arena), arena.b_NO.index_select(0, layer.rows_R))
