"""The gate of some adaptive plans in one layer: what stays the same while the plans' adapters stay where they are.

Shapes as in `adaptive_table`; T tokens, D in-features, O out-features.
"""

from __future__ import annotations

import math

import torch

from hilora.adaptive_gating import best_factors, softmax_factors
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule
from hilora.token_gating import largest_mask
from services.worker.lora.gating.adaptive_scores import TokenPlans, layer_scores
from services.worker.lora.gating.adaptive_table import AdaptiveTable, Budgets, SlotLayer
from services.worker.lora.gating.layer_inputs import LayerInputs
from services.worker.lora.pool.roc_arena import RocArena

_SUM = 0
"""torch.embedding_bag's number for mode "sum"."""


class AdaptiveTokens:
    """What the plans of some tokens say for all layers.

    Args:
        table: the plans.
        plans_T: numbers of the tokens' plans.
    """

    def __init__(self, table: AdaptiveTable, plans_T: torch.Tensor) -> None:
        self.plans = TokenPlans(plans_T if table.is_shared else None)
        self.columns_TX = self.plans.of(table.columns_PX)
        self.constants_TL1 = self.plans.of(table.constants_PL1)
        self.temperature: float | torch.Tensor = table.gate.temperature
        if table.is_shared:
            self.temperature = self.plans.of(table.temperatures_P1)
        num_slots = table.num_adapters * table.num_slots
        self.bag_starts_T = torch.arange(len(plans_T), device=plans_T.device) * num_slots
        num_scores = num_slots if table.gate.rule is GateRule.SMORA else table.num_adapters
        tops = [top if 0 < top < num_scores else num_scores for top in table.tops]
        self.top_k: int | torch.Tensor = 0
        if min(tops) < num_scores:
            tops_P1 = torch.tensor(tops, device=plans_T.device)[:, None]
            self.top_k = self.plans.of(tops_P1) if table.is_shared else tops[0]


class AdaptiveLayer:
    """The plans' gate in one layer.

    Args:
        table: the plans.
        slots: theirs in this layer.
        module_idx: the layer.
        arena: where its components are.
        learned: what the plans' learned gate has for it.

    Raises:
        InvalidInput: `gate_shape_mismatch`; see `layer_scores`.
    """

    def __init__(
        self, table: AdaptiveTable, slots: SlotLayer, module_idx: int, arena: RocArena, learned: GateTensors | None
    ) -> None:
        self._table = table
        self._slots = slots
        self._scores = layer_scores(table, slots, module_idx, arena, learned)

    def add(self, inputs: LayerInputs, y_TO: torch.Tensor, arena: RocArena, tokens: AdaptiveTokens) -> None:
        """Add the output of the tokens' plans to `y` in place.

        Args:
            inputs: the layer's.
            y_TO: what the base layer made of them.
            arena: where the layer's components are.
            tokens: the tokens' plans.
        """
        table, slots = self._table, self._slots
        h_TLS = self._responses(inputs, arena, tokens)
        gains_TLS = h_TLS * self._factors(h_TLS, inputs, tokens) * tokens.constants_TL1
        if slots.budgets is not None:
            gains_TLS = torch.where(self._is_kept(h_TLS, slots.budgets, arena, tokens), gains_TLS, 0.0)
        if not table.is_shared:
            y_TO.addmm_(gains_TLS.flatten(1), arena.b_NO.index_select(0, slots.rows_C))
            return
        # Bags, and not one product with the up-vectors of all plans: what is not finite stays with its own plan.
        summed, *_ = torch.embedding_bag(
            arena.b_NO,
            tokens.plans.of(slots.rows_PX).flatten(),
            tokens.bag_starts_T,
            scale_grad_by_freq=False,
            mode=_SUM,
            sparse=False,
            per_sample_weights=gains_TLS.flatten(),
        )
        y_TO += summed

    def acting(self, inputs: LayerInputs, arena: RocArena, tokens: AdaptiveTokens) -> torch.Tensor:
        """Which components have a factor that is not zero, boolean `[T, L, S]`. Arguments as in `add`."""
        slots = self._slots
        h_TLS = self._responses(inputs, arena, tokens)
        is_real_TLS = tokens.plans.of(slots.is_real_PX).view(-1, *h_TLS.shape[1:])
        is_acting_TLS = is_real_TLS & (self._factors(h_TLS, inputs, tokens) != 0)
        if slots.budgets is None:
            return is_acting_TLS
        return is_acting_TLS & self._is_kept(h_TLS, slots.budgets, arena, tokens)

    def _responses(self, inputs: LayerInputs, arena: RocArena, tokens: AdaptiveTokens) -> torch.Tensor:
        """`[T, L, S]`."""
        h_TX = inputs.products(arena.a_ND, self._slots.rows_C)
        if self._table.is_shared:
            h_TX = h_TX.gather(1, tokens.columns_TX)
        return h_TX.view(-1, self._table.num_adapters, self._table.num_slots)

    def _factors(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: AdaptiveTokens) -> torch.Tensor:
        """Factors of adapters `[T, L, 1]`, under SMoRA of components `[T, L, S]`."""
        slots, rule = self._slots, self._table.gate.rule
        scores_TN = self._scores.of(h_TLS, inputs, tokens.plans)
        is_there_PN = slots.is_real_PX if rule is GateRule.SMORA else slots.is_there_PL
        is_there_TN = None if is_there_PN is None else tokens.plans.of(is_there_PN)
        if is_there_TN is not None:
            scores_TN = torch.where(is_there_TN, scores_TN, -math.inf)
        if rule is GateRule.SEQR:
            factors_TN = best_factors(scores_TN)
        else:
            biases_TN = self._scores.biases(tokens.plans)
            contest_TN = None if biases_TN is None else scores_TN + biases_TN
            factors_TN = softmax_factors(
                scores_TN, temperature=tokens.temperature, top_k=tokens.top_k, contest_TN=contest_TN
            )
        if is_there_TN is not None:
            # A plan without any adapter in this layer has no factors at all.
            factors_TN = torch.where(is_there_TN, factors_TN, 0.0)
        return factors_TN.to(h_TLS.dtype).view(len(h_TLS), self._table.num_adapters, -1)

    def _is_kept(self, h_TLS: torch.Tensor, budgets: Budgets, arena: RocArena, tokens: AdaptiveTokens) -> torch.Tensor:
        table, slots, plans = self._table, self._slots, tokens.plans
        shape = (-1, table.num_adapters, table.num_slots)
        scores_TLS = h_TLS.abs()
        if table.is_by_norm:
            norms_TLS = arena.b_norms_N[plans.of(slots.rows_PX)].view(shape)
            scores_TLS = torch.where(plans.of(table.by_norm_P11), scores_TLS * norms_TLS, scores_TLS)
        is_real_TLS = plans.of(slots.is_real_PX).view(shape)
        of_adapters_TLS = torch.where(is_real_TLS, scores_TLS, -math.inf)
        is_kept_TLS = largest_mask(of_adapters_TLS, num_kept=plans.of(budgets.of_adapters_PL1))
        of_plans_TLS = torch.where(is_real_TLS, scores_TLS * plans.of(table.competing_weights), -math.inf)
        of_plans_TX = largest_mask(of_plans_TLS.flatten(1), num_kept=plans.of(budgets.of_plans_P1))
        return is_kept_TLS & of_plans_TX.view(h_TLS.shape)
