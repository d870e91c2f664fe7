"""How the tokens of a layer score the adapters, or the components, of their plans: one function per rule.

Shapes as in `adaptive_table`; T tokens, K distinct adapters of all plans that have components in the layer, D
in-features, G rank of RAMoLE's router. The equations are in `hilora/adaptive_gating.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from hilora.adaptive_gating import (
    arrow_scores,
    exact,
    output_norms,
    phatgoose_scores,
    ramole_keys,
    ramole_scores,
)
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule
from services.worker.lora.gating.adaptive_table import AdaptiveTable, SlotLayer
from services.worker.lora.gating.layer_inputs import LayerInputs
from services.worker.lora.pool.roc_arena import RocArena


class TokenPlans:
    """Which plan each token has.

    Args:
        plans_T: numbers of the tokens' plans; None: all tokens have the only one, and a row for all of them will do.
    """

    def __init__(self, plans_T: torch.Tensor | None) -> None:
        self._plans_T = plans_T

    def of(self, values_P: torch.Tensor) -> torch.Tensor:
        """Each token's row of a tensor by plan."""
        return values_P if self._plans_T is None else values_P.index_select(0, self._plans_T)

    def pick(self, values_TC: torch.Tensor, places_PX: torch.Tensor) -> torch.Tensor:
        """Of each token's values those at its plan's places."""
        if self._plans_T is None:
            return values_TC.index_select(1, places_PX[0])
        return values_TC.gather(1, self.of(places_PX))


class LayerScores(ABC):
    """A layer's scores."""

    @abstractmethod
    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        """A score for each adapter `[T, L]`, under SMoRA for each slot `[T, X]`. What is padding has any value."""

    def biases(self, tokens: TokenPlans) -> torch.Tensor | None:
        """What is added to the scores, row by row, for the choice of the best, and does not weigh them; None: nothing.
        One row where all tokens have the only plan."""
        del tokens
        return None


def layer_scores(
    table: AdaptiveTable, slots: SlotLayer, module_idx: int, arena: RocArena, learned: GateTensors | None
) -> LayerScores:
    """The scores of one layer.

    Args:
        table: the plans.
        slots: theirs in this layer.
        module_idx: the layer.
        arena: where its components are.
        learned: what the plans' learned gate has for it.

    Raises:
        InvalidInput: `gate_shape_mismatch`: the learned gate has nothing for an adapter here, or another number of rows
            than the adapter has components.
    """
    match table.gate.rule:
        case GateRule.ARROW:
            return _Arrow(table, slots, arena)
        case GateRule.SPECTR | GateRule.SEQR:
            return _OutputNorms()
        case GateRule.RAMOLE:
            return _Ramole(table, slots, arena, learned)
        case GateRule.PHATGOOSE:
            return _Phatgoose(table, module_idx, learned)
        case GateRule.SMORA:
            return _Smora(table, slots, module_idx, learned)
        case GateRule.ROCS:
            raise ValueError("rule rocs does not choose among adapters")


class _Arrow(LayerScores):
    def __init__(self, table: AdaptiveTable, slots: SlotLayer, arena: RocArena) -> None:
        firsts_PL = slots.rows_PX[:, :: table.num_slots]
        self._norms_PL = torch.linalg.vector_norm(exact(arena.a_ND[firsts_PL]), dim=-1)

    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        del inputs
        return arrow_scores(h_TLS[:, :, 0], first_norms_TL=tokens.of(self._norms_PL))


class _OutputNorms(LayerScores):
    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        del inputs, tokens
        return output_norms(h_TLS)


class _Ramole(LayerScores):
    def __init__(self, table: AdaptiveTable, slots: SlotLayer, arena: RocArena, learned: GateTensors | None) -> None:
        if learned is None or learned.router_a_GD is None or learned.router_b_OG is None:
            raise _mismatch("The gate has no router for a layer that the plan's adapters change.")
        self._table = table
        self._router_a_GD = learned.router_a_GD
        self._keys_CG = exact(ramole_keys(arena.b_NO.index_select(0, slots.rows_C), learned.router_b_OG))

    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        products_TC = exact(inputs.products(self._router_a_GD)) @ self._keys_CG.T
        if self._table.is_shared:
            products_TC = tokens.pick(products_TC, self._table.columns_PX)
        return ramole_scores(products_TC.view(h_TLS.shape), h_TLS, router_rank=len(self._router_a_GD))


class _Phatgoose(LayerScores):
    def __init__(self, table: AdaptiveTable, module_idx: int, learned: GateTensors | None) -> None:
        present = _present(table, module_idx)
        self._vectors_K = [_gate_of(table.adapter_ids[owner], learned) for owner in present]
        self._places_PL = table.tensor(_places(table, present, range(len(present))))

    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        del h_TLS
        # Stacked in every step: a copy kept for each layout of rows would be as large as the gates themselves.
        projections_TK = inputs.products(torch.stack(self._vectors_K))
        return phatgoose_scores(
            tokens.pick(projections_TK, self._places_PL),
            deviations_T=inputs.deviations(),
            num_features=len(self._vectors_K[0]),
        )


class _Smora(LayerScores):
    def __init__(self, table: AdaptiveTable, slots: SlotLayer, module_idx: int, learned: GateTensors | None) -> None:
        present, ranks = _present(table, module_idx), table.ranks(module_idx)
        self._matrices_K = [_gate_of(table.adapter_ids[owner], learned, ranks[owner]) for owner in present]
        firsts = list(accumulate((ranks[owner] for owner in present), initial=0))[:-1]
        places_PLS = _places(table, present, firsts)[:, :, None] + np.arange(table.num_slots)
        places_PX = table.tensor(places_PLS.reshape(table.num_plans, -1))
        # Padding may stand for any component: it is told apart by what the slots say.
        self._places_PX = torch.where(slots.is_real_PX, places_PX, 0)
        given = {} if learned is None else learned.biases
        zeros = [torch.zeros(ranks[owner], device=places_PX.device) for owner in present]
        names = [table.adapter_ids[owner] for owner in present]
        biases = torch.cat([given.get(name, zero) for name, zero in zip(names, zeros, strict=True)])
        self._biases_PX = biases[self._places_PX]

    def of(self, h_TLS: torch.Tensor, inputs: LayerInputs, tokens: TokenPlans) -> torch.Tensor:
        del h_TLS
        # Put together in every step, as above.
        return exact(tokens.pick(inputs.products(torch.cat(self._matrices_K)), self._places_PX))

    def biases(self, tokens: TokenPlans) -> torch.Tensor:
        return tokens.of(self._biases_PX)


def _present(table: AdaptiveTable, module_idx: int) -> list[int]:
    """Which of the distinct adapters have components in a layer."""
    return [owner for owner, rank in enumerate(table.ranks(module_idx)) if rank > 0]


def _places(table: AdaptiveTable, present: Sequence[int], places: Sequence[int]) -> np.ndarray:
    """By plan and adapter, the place that a present adapter has been given; 0 for others. `[P, L]`."""
    by_owner = np.zeros(len(table.adapter_ids) + 1, dtype=np.int64)
    by_owner[list(present)] = list(places)
    return by_owner[table.owners_PL]


def _gate_of(adapter_id: str, learned: GateTensors | None, num_rows: int | None = None) -> torch.Tensor:
    gate = None if learned is None else learned.gates.get(adapter_id)
    if gate is None:
        raise _mismatch(f"The gate has nothing for a layer that {adapter_id} changes.")
    if num_rows not in {None, gate.shape[0]}:
        raise _mismatch(f"The gate has {gate.shape[0]} rows for {num_rows} components of {adapter_id}.")
    return gate


def _mismatch(message: str) -> InvalidInput:
    return InvalidInput(
        message,
        code="gate_shape_mismatch",
        remedy="Name a gate that was trained with the base model and the adapter versions that are served here.",
        place="plan.gate.gate_id",
    )
