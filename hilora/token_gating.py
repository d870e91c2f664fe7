"""Token-level gating: which rank-one components (ROCs) act on a token, and with what factor.

    h_j = a_j . x                                   the token's response                       ("shrink")
    g_j = eta * w_i   where ROC j of adapter i is kept, else 0                                 ("gate")
    y   = W0 x + sum_j g_j h_j b_j                                                             ("expand")

Which ROCs are kept: per adapter the `o_i` of largest score, or the `O = sum o_i` of largest `|w_i| * score` over all
candidates. The score is `|h_j|` (arXiv 2510.12266) or `|h_j| ||b_j||`. Among equal scores the lower index wins, so
the result does not depend on the machine, the batch or the layout.

Shapes: T tokens, R the candidates' ROCs side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hilora.routing_plan import GateParameters, GateScope, RocScore, RoutingPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleGate:
    """A plan applied to one module: numbers only, in the order of the candidates' stacked ROCs."""

    num_rocs: tuple[int, ...]
    """ROCs each candidate has in this module; their sum is R."""
    budgets: tuple[int, ...]
    """ROCs each candidate may switch on here."""
    weights: tuple[float, ...]
    """Factor of each candidate's output."""
    eta: float = 1.0
    score: RocScore = RocScore.ACTIVATION
    scope: GateScope = GateScope.PER_ADAPTER

    def __post_init__(self) -> None:
        if not len(self.num_rocs) == len(self.budgets) == len(self.weights):
            raise ValueError("num_rocs, budgets and weights must have one entry per candidate")
        if any(not 0 <= budget <= size for budget, size in zip(self.budgets, self.num_rocs, strict=True)):
            raise ValueError(f"budgets {self.budgets} are not within 0..{self.num_rocs}")

    @property
    def is_full(self) -> bool:
        """Whether every ROC acts on every token, so that no score is needed."""
        return self.budgets == self.num_rocs

    @property
    def segments(self) -> list[tuple[int, int]]:
        """First and past-the-last column of each candidate in `h_TR`."""
        offsets = [0]
        for size in self.num_rocs:
            offsets.append(offsets[-1] + size)
        return list(pairwise(offsets))


def module_gate(plan: RoutingPlan, *, num_rocs: Sequence[int]) -> ModuleGate:
    """The gate of one module.

    Args:
        plan: the request's work order.
        num_rocs: ROCs that each of `plan.budgets` has in the module; 0 where an adapter does not touch it.
    """
    gate: GateParameters = plan.gate
    return ModuleGate(
        num_rocs=tuple(num_rocs),
        budgets=tuple(budget.num_rocs_in(size) for budget, size in zip(plan.budgets, num_rocs, strict=True)),
        weights=tuple(budget.weight for budget in plan.budgets),
        eta=gate.eta,
        score=gate.score,
        scope=gate.scope,
    )


def gate_rocs(h_TR: torch.Tensor, *, gate: ModuleGate, b_norm_R: torch.Tensor | None = None) -> torch.Tensor:
    """The factors `g_TR` of one plan over many tokens: `eta * w_i` where a ROC acts, else 0.

    Args:
        h_TR: the tokens' responses to the candidates' stacked `a` rows.
        gate: the plan's numbers for this module.
        b_norm_R: `||b_j||`; needed by the `contribution` score only.

    Raises:
        ValueError: the shapes disagree, or the score needs `b_norm_R`.
    """
    weight_R = _per_roc(gate, h_TR)
    if gate.is_full:
        return (weight_R * gate.eta).expand_as(h_TR)
    kept_TR = active_rocs_mask(h_TR, gate=gate, b_norm_R=b_norm_R)
    return torch.where(kept_TR, weight_R * gate.eta, torch.zeros((), dtype=h_TR.dtype, device=h_TR.device))


def active_rocs_mask(h_TR: torch.Tensor, *, gate: ModuleGate, b_norm_R: torch.Tensor | None = None) -> torch.Tensor:
    """Which ROCs act on which token: a boolean `active_rocs_mask_TR`. Arguments as in `gate_rocs`."""
    weight_R = _per_roc(gate, h_TR)
    scores_TR = h_TR.abs()
    if gate.score is RocScore.CONTRIBUTION:
        if b_norm_R is None:
            raise ValueError("the contribution score needs b_norm_R")
        scores_TR = scores_TR * b_norm_R
    if gate.scope is GateScope.GLOBAL:
        return largest_mask(scores_TR * weight_R.abs(), num_kept=sum(gate.budgets))
    kept = [
        largest_mask(scores_TR[:, start:end], num_kept=budget)
        for (start, end), budget in zip(gate.segments, gate.budgets, strict=True)
    ]
    return torch.cat(kept, dim=1) if kept else torch.zeros_like(h_TR, dtype=torch.bool)


def largest_mask(scores: torch.Tensor, *, num_kept: int | torch.Tensor) -> torch.Tensor:
    """Mask of the `num_kept` largest along the last dimension, the lower index first among equals. Numbers in a tensor
    stand for rows of their own: its last dimension is 1."""
    # A stable sort instead of topk: topk breaks ties as it likes.
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    place = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    return rank < num_kept


def _per_roc(gate: ModuleGate, h_TR: torch.Tensor) -> torch.Tensor:
    """The candidates' weights, one per stacked ROC `[R]`."""
    if h_TR.ndim != 2 or h_TR.shape[1] != sum(gate.num_rocs):
        raise ValueError(f"h has shape {tuple(h_TR.shape)}, the gate describes {sum(gate.num_rocs)} ROCs")
    weights = [weight for weight, size in zip(gate.weights, gate.num_rocs, strict=True) for _ in range(size)]
    return torch.tensor(weights, dtype=h_TR.dtype, device=h_TR.device)
