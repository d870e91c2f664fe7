"""A plan's rule in one layer: numbers and tensors that stay the same while the plan's adapters stay where they are.

Shapes: T tokens, L the plan's adapters that have components in the layer, R those components side by side, D
in-features, G rank of RAMoLE's router. The equations are in `hilora/adaptive_gating.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch

from hilora.adaptive_gating import (
    arrow_scores,
    best_factors,
    exact,
    output_norms,
    phatgoose_scores,
    ramole_keys,
    ramole_scores,
    softmax_factors,
)
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule, RoutingPlan
from hilora.token_gating import ModuleGate, gate_rocs, module_gate
from services.worker.lora.gating.layer_inputs import LayerInputs
from services.worker.lora.pool.roc_arena import RocArena

_Scores = Callable[[torch.Tensor, LayerInputs], torch.Tensor]
"""From responses `[T, R]` and inputs to a score per adapter `[T, L]`, or per component `[T, R]` under SMoRA."""


class AdaptiveLayer:
    """One plan's gate in one layer.

    Args:
        plan: the budgets of those adapters that have components here.
        num_rocs: how many components each of them has here.
        rows_R: where they are in the arena.
        arena: the layer's.
        learned: what the plan's learned gate has for this layer.

    Raises:
        InvalidInput: `gate_shape_mismatch`: the learned gate has nothing for an adapter here, or another number of rows
            than the adapter has components.
    """

    def __init__(
        self,
        *,
        plan: RoutingPlan,
        num_rocs: tuple[int, ...],
        rows_R: torch.Tensor,
        arena: RocArena,
        learned: GateTensors | None,
    ) -> None:
        self.rows_R = rows_R
        self._parameters = plan.gate
        self._gate: ModuleGate = module_gate(plan, num_rocs=num_rocs)
        owners = [owner for owner, size in enumerate(num_rocs) for _ in range(size)]
        constants = [plan.gate.eta * plan.budgets[owner].weight for owner in owners]
        self._owners_R = torch.tensor(owners, device=rows_R.device)
        self._constants_R = torch.tensor(constants, dtype=arena.a_ND.dtype, device=rows_R.device)
        self._biases_R: torch.Tensor | None = None
        if plan.gate.rule is GateRule.SMORA:
            self._biases_R = _biases(plan, num_rocs, learned, device=rows_R.device)
        self._scores = _scores_of(plan, num_rocs, rows_R, arena, learned)

    def gains(self, h_TR: torch.Tensor, inputs: LayerInputs, arena: RocArena) -> torch.Tensor:
        """`g h` of each token and component, `[T, R]`.

        Args:
            h_TR: the tokens' responses.
            inputs: the layer's inputs, which they come from.
            arena: the layer's.
        """
        factors_TR = self._factors(self._scores(h_TR, inputs)).to(h_TR.dtype)
        if self._gate.is_full:
            return h_TR * factors_TR * self._constants_R
        return h_TR * factors_TR * gate_rocs(h_TR, gate=self._gate, b_norm_R=arena.b_norms_N[self.rows_R])

    def _factors(self, scores: torch.Tensor) -> torch.Tensor:
        gate = self._parameters
        if gate.rule is GateRule.SEQR:
            return best_factors(scores)[:, self._owners_R]
        if self._biases_R is None:
            return softmax_factors(scores, temperature=gate.temperature, top_k=gate.top_k)[:, self._owners_R]
        contest_TR = scores + self._biases_R
        return softmax_factors(scores, temperature=gate.temperature, top_k=gate.top_k, contest_TN=contest_TR)


def _scores_of(
    plan: RoutingPlan, num_rocs: tuple[int, ...], rows_R: torch.Tensor, arena: RocArena, learned: GateTensors | None
) -> _Scores:
    match plan.gate.rule:
        case GateRule.ARROW:
            return _arrow(num_rocs, rows_R, arena)
        case GateRule.SPECTR | GateRule.SEQR:
            members_RL = _members(num_rocs, arena)
            return lambda h_TR, _: output_norms(h_TR, members_RL=members_RL)
        case GateRule.RAMOLE:
            return _ramole(num_rocs, rows_R, arena, learned)
        case GateRule.PHATGOOSE:
            return _phatgoose(plan, learned)
        case GateRule.SMORA:
            # Stacked in every step: a copy kept for each plan would be as large as the adapters themselves.
            rows = [_gate_of(plan, idx, learned, size) for idx, size in enumerate(num_rocs)]
            return lambda _, inputs: exact(inputs.products(torch.cat(rows)))
        case GateRule.ROCS:
            raise ValueError("rule rocs does not choose among adapters")


def _arrow(num_rocs: tuple[int, ...], rows_R: torch.Tensor, arena: RocArena) -> _Scores:
    first_L = torch.tensor(list(accumulate(num_rocs[:-1], initial=0)), device=rows_R.device)
    norms_L = torch.linalg.vector_norm(exact(arena.a_ND[rows_R[first_L]]), dim=1)
    return lambda h_TR, _: arrow_scores(h_TR, first_columns_L=first_L, first_norms_L=norms_L)


def _phatgoose(plan: RoutingPlan, learned: GateTensors | None) -> _Scores:
    vectors = [_gate_of(plan, idx, learned) for idx in range(len(plan.budgets))]
    return lambda _, inputs: phatgoose_scores(
        inputs.products(torch.stack(vectors)), deviations_T=inputs.deviations(), num_features=len(vectors[0])
    )


def _ramole(num_rocs: tuple[int, ...], rows_R: torch.Tensor, arena: RocArena, learned: GateTensors | None) -> _Scores:
    if learned is None or learned.router_a_GD is None or learned.router_b_OG is None:
        raise _mismatch("The gate has no router for a layer that the plan's adapters change.")
    members_RL, router_a_GD = _members(num_rocs, arena), learned.router_a_GD
    keys_RG = exact(ramole_keys(arena.b_NO.index_select(0, rows_R), learned.router_b_OG))
    return lambda h_TR, inputs: ramole_scores(
        inputs.products(router_a_GD), h_TR, keys_RG=keys_RG, members_RL=members_RL
    )


def _members(num_rocs: tuple[int, ...], arena: RocArena) -> torch.Tensor:
    """1 where a component belongs to an adapter, `[R, L]`, in the type of scores."""
    ones = [torch.ones(size, 1, device=arena.a_ND.device) for size in num_rocs]
    return torch.block_diag(*ones).to(exact(arena.b_norms_N[:0]).dtype)


def _gate_of(
    plan: RoutingPlan, adapter_idx: int, learned: GateTensors | None, num_rows: int | None = None
) -> torch.Tensor:
    adapter_id = plan.budgets[adapter_idx].adapter_id
    gate = None if learned is None else learned.gates.get(adapter_id)
    if gate is None:
        raise _mismatch(f"The gate has nothing for a layer that {adapter_id} changes.")
    if num_rows not in {None, gate.shape[0]}:
        raise _mismatch(f"The gate has {gate.shape[0]} rows for {num_rows} components of {adapter_id}.")
    return gate


def _biases(
    plan: RoutingPlan, num_rocs: tuple[int, ...], learned: GateTensors | None, *, device: torch.device
) -> torch.Tensor:
    given = {} if learned is None else learned.biases
    sizes = zip(plan.budgets, num_rocs, strict=True)
    return torch.cat([given.get(budget.adapter_id, torch.zeros(size, device=device)) for budget, size in sizes])


def _mismatch(message: str) -> InvalidInput:
    return InvalidInput(
        message,
        code="gate_shape_mismatch",
        remedy="Name a gate that was trained with the base model and the adapter versions that are served here.",
        place="plan.gate.gate_id",
    )
