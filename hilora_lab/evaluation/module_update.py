"""What a plan's adapters add to one layer's output, by whichever rule the plan names.

Shapes: T tokens, L the adapters that have ROCs in the layer, R those ROCs side by side, S the largest number of one
adapter's, D in-features, O out-features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch

from hilora.adapter import RankOneComponents
from hilora.adaptive_gating import (
    arrow_scores,
    best_factors,
    deviations,
    output_norms,
    phatgoose_scores,
    ramole_keys,
    ramole_scores,
    softmax_factors,
    standardized,
)
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateRule, RoutingPlan
from hilora.token_gating import gate_rocs, module_gate


class ModuleUpdate:
    """One layer under a plan.

    Args:
        plan: its budgets are those of the adapters that have ROCs here, one at least.
        rocs: theirs, in the same order.
        learned: what the plan's learned gate has for this layer; None where the rule needs none, or it has nothing.
        place: the layer's path, for messages.

    Raises:
        InvalidInput: `gate_shape_mismatch`: the learned gate has no tensor for an adapter here, or one that does not
            fit.
    """

    def __init__(
        self, plan: RoutingPlan, rocs: Sequence[RankOneComponents], *, learned: GateTensors | None, place: str
    ) -> None:
        self._a_RD = torch.cat([one.a_RD for one in rocs])
        self._b_RO = torch.cat([one.b_RO for one in rocs])
        self._b_norm_R = torch.linalg.vector_norm(self._b_RO, dim=1)
        self._rule = plan.gate
        sizes = [one.num_rocs for one in rocs]
        self._gate = module_gate(plan, num_rocs=sizes)
        self._owner_R = torch.tensor([owner for owner, size in enumerate(sizes) for _ in range(size)])
        self._first_L = torch.tensor(list(accumulate(sizes[:-1], initial=0)))
        self._columns_LS = torch.full((len(sizes), max(sizes)), len(self._owner_R))
        for owner, (size, first) in enumerate(zip(sizes, self._first_L.tolist(), strict=True)):
            self._columns_LS[owner, :size] = torch.arange(first, first + size)
        self._place = place
        self._learned = learned or GateTensors()
        ids = [budget.adapter_id for budget in plan.budgets]
        if self._rule.rule.is_learned:
            self._check(ids, sizes)
        self._gates = [self._learned.gates[adapter_id].to(self._a_RD) for adapter_id in ids if self._learned.gates]
        given = self._learned.biases
        biases = [given.get(adapter_id, torch.zeros(size)) for adapter_id, size in zip(ids, sizes, strict=True)]
        self._bias_R = torch.cat(biases).to(self._a_RD)

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The update of each token, `[T, O]`."""
        h_TR = x_TD @ self._a_RD.T
        g_TR = gate_rocs(h_TR, gate=self._gate, b_norm_R=self._b_norm_R)
        if self._rule.rule is not GateRule.ROCS:
            g_TR = g_TR * self._factors(h_TR, x_TD)
        return (g_TR * h_TR) @ self._b_RO

    def _factors(self, h_TR: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
        """`alpha` of each token and ROC, `[T, R]`."""
        softmax = partial(softmax_factors, temperature=self._rule.temperature, top_k=self._rule.top_k)
        match self._rule.rule:
            case GateRule.ROCS:
                return torch.ones_like(h_TR)
            case GateRule.SEQR:
                return best_factors(output_norms(self._by_adapter(h_TR)))[:, self._owner_R]
            case GateRule.SMORA:
                scores_TR = x_TD @ torch.cat(self._gates).T
                return softmax(scores_TR, contest_TN=scores_TR + self._bias_R)
            case GateRule.SPECTR:
                scores_TL = output_norms(self._by_adapter(h_TR))
            case GateRule.ARROW:
                norms_L = torch.linalg.vector_norm(self._a_RD[self._first_L], dim=1)
                scores_TL = arrow_scores(h_TR[:, self._first_L], first_norms_TL=norms_L[None])
            case GateRule.PHATGOOSE:
                projections_TL = x_TD @ standardized(torch.stack(self._gates)).T
                scores_TL = phatgoose_scores(projections_TL, deviations_T=deviations(x_TD), num_features=x_TD.shape[1])
            case GateRule.RAMOLE:
                router_a_GD, router_b_OG = self._routers()
                products_TR = x_TD @ router_a_GD.T @ ramole_keys(self._b_RO, router_b_OG).T
                scores_TL = ramole_scores(
                    self._by_adapter(products_TR), self._by_adapter(h_TR), router_rank=len(router_a_GD)
                )
        return softmax(scores_TL)[:, self._owner_R]

    def _by_adapter(self, values_TR: torch.Tensor) -> torch.Tensor:
        """The ROCs' values by adapter, `[T, L, S]`, 0 in slots that an adapter has no ROC for."""
        return torch.nn.functional.pad(values_TR, (0, 1))[:, self._columns_LS]

    def _routers(self) -> tuple[torch.Tensor, torch.Tensor]:
        router_a_GD, router_b_OG = self._learned.router_a_GD, self._learned.router_b_OG
        if router_a_GD is None or router_b_OG is None:
            raise self._mismatch("it has no router there")
        return router_a_GD.to(self._a_RD), router_b_OG.to(self._a_RD)

    def _check(self, adapter_ids: Sequence[str], sizes: Sequence[int]) -> None:
        num_in, num_out = self._a_RD.shape[1], self._b_RO.shape[1]
        if self._rule.rule is GateRule.RAMOLE:
            router_a_GD, router_b_OG = self._routers()
            if (router_a_GD.shape[1], router_b_OG.shape[0]) != (num_in, num_out):
                raise self._mismatch(f"its router is not one of {num_in} inputs and {num_out} outputs")
            return
        for adapter_id, size in zip(adapter_ids, sizes, strict=True):
            gate = self._learned.gates.get(adapter_id)
            if gate is None:
                raise self._mismatch(f"it has nothing for {adapter_id} there")
            expected = (num_in,) if self._rule.rule is GateRule.PHATGOOSE else (size, num_in)
            if tuple(gate.shape) != expected:
                raise self._mismatch(f"its tensor for {adapter_id} has shape {tuple(gate.shape)}, not {expected}")

    def _mismatch(self, reason: str) -> InvalidInput:
        return InvalidInput(
            f"Gate {self._rule.gate_id} cannot be used for {self._place}: {reason}.",
            code="gate_shape_mismatch",
            remedy="Name a gate that was trained with this base model and these adapter versions.",
            place="plan.gate.gate_id",
        )
