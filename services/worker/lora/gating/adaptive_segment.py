"""Rows whose tokens choose among their plan's adapters themselves, by one rule: decode tokens or prompt chunks.

Shapes: T rows, D in-features, O out-features, K selected rows.

Plans of one rule and one learned gate share a segment, whose cost grows with its tokens. The gate reads every
candidate's responses, so nothing is saved by keeping few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hilora.learned_gate import GateTensors
from hilora.routing_plan import RoutingPlan
from services.worker.lora.gating.adaptive_layers import AdaptiveLayer, AdaptiveTokens
from services.worker.lora.gating.adaptive_table import AdaptiveTable
from services.worker.lora.gating.gate_tables import StepTable
from services.worker.lora.gating.layer_inputs import DenseInputs, LayerInputs, TokenIdInputs
from services.worker.lora.gating.learned_gates import LearnedGates
from services.worker.lora.pool.roc_pool import RocPool


class AdaptiveSegment:
    """Consecutive rows of adaptive plans. Good while the plans' adapters stay where they are.

    Args:
        rows: of the step.
        plans: the rows' distinct plans, of one rule and one learned gate; their adapters are committed.
        table: which row uses which of them; none is without.
        pool: where the adapters are.
        gates: where the learned gate is; None where no plan has one.
        dtype: of the model's activations.
        device: the model's.

    Raises:
        InvalidInput: `gate_shape_mismatch`.
    """

    def __init__(
        self,
        rows: slice,
        plans: Sequence[RoutingPlan],
        table: StepTable,
        pool: RocPool,
        gates: LearnedGates | None,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self._pool = pool
        self._table = AdaptiveTable(plans, table, pool, dtype=dtype, device=device)
        self._learned: Mapping[int, GateTensors] = {}
        if plans[0].gate.rule.is_learned:
            assert gates is not None, "learned gates have no place here"
            self._learned = gates.of(plans[0]).modules
        self._tokens = AdaptiveTokens(self._table, self._table.token_plans_T)
        # Made when a layer first asks; learned gates at once: one that does not fit is one request's own fault while a
        # step is being built, but in the middle of a sharded model's pass it would end all of its processes.
        self._layers: dict[int, AdaptiveLayer | None] = {}
        if self._learned:
            for module_idx in table.targets_N.tolist():
                self._layer(module_idx)

    @property
    def num_plans(self) -> int:
        """Plans that share this segment."""
        return self._table.num_plans

    def add(self, module_idx: int, x_TD: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        self._apply(module_idx, DenseInputs(x_TD), y_TO, self._tokens)

    def add_selected(self, module_idx: int, x_KD: torch.Tensor, row_idx_K: torch.Tensor, y_KO: torch.Tensor) -> None:
        """See `Segment`."""
        tokens = AdaptiveTokens(self._table, self._table.token_plans_T[row_idx_K])
        self._apply(module_idx, DenseInputs(x_KD), y_KO, tokens)

    def add_embedding(self, module_idx: int, token_ids_T: torch.Tensor, y_TO: torch.Tensor) -> None:
        """See `Segment`."""
        num_features = self._pool.arena(module_idx).a_ND.shape[1]
        self._apply(module_idx, TokenIdInputs(token_ids_T, num_features=num_features), y_TO, self._tokens)

    def acting(self, module_idx: int, inputs: LayerInputs) -> torch.Tensor:
        """Which slots have a factor that is not zero, boolean `[T, L, S]`, for any number of rows of the only plan. The
        layer is one that the plan targets."""
        assert not self._table.is_shared, "the rows would have to say whose they are"
        layer = self._layer(module_idx)
        assert layer is not None, "the plan has no components here"
        return layer.acting(inputs, self._pool.arena(module_idx), self._tokens)

    def _apply(self, module_idx: int, inputs: LayerInputs, y_TO: torch.Tensor, tokens: AdaptiveTokens) -> None:
        layer = self._layer(module_idx)
        if layer is not None:
            layer.add(inputs, y_TO, self._pool.arena(module_idx), tokens)

    def _layer(self, module_idx: int) -> AdaptiveLayer | None:
        if module_idx not in self._layers:
            self._layers[module_idx] = self._made(module_idx)
        return self._layers[module_idx]

    def _made(self, module_idx: int) -> AdaptiveLayer | None:
        slots = self._table.layer(module_idx)
        if slots is None:
            return None
        arena, learned = self._pool.arena(module_idx), self._learned.get(module_idx)
        return AdaptiveLayer(self._table, slots, module_idx, arena, learned)
