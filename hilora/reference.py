"""The token-level arithmetic once more, slowly and literally: the oracle that fast code is compared with.

No sorting, no batching, no shared code with `token_gating`: loops over tokens and components, written from the
equations.

Shapes: T tokens, D in-features, O out-features, R components of one candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hilora.adapter import RankOneComponents
from hilora.routing_plan import GateParameters, GateScope, RocScore


def reference_forward(
    x_TD: torch.Tensor,
    *,
    w0_OD: torch.Tensor,
    bias_O: torch.Tensor | None,
    candidates: Sequence[RankOneComponents],
    budgets: Sequence[int],
    weights: Sequence[float],
    gate: GateParameters,
) -> torch.Tensor:
    """`y = W0 x + bias + eta * sum_i w_i sum_{j kept} b_ij (a_ij . x)` for each token, `[T, O]`.

    Args:
        x_TD: the tokens' inputs of one linear layer.
        w0_OD: the base's weight.
        bias_O: the base's bias.
        candidates: the ROCs of each candidate in this module.
        budgets: how many of them each may switch on.
        weights: factor of each candidate's output.
        gate: the token-level rule.
    """
    rows: list[torch.Tensor] = []
    for x_D in x_TD:
        y_O = torch.einsum("od,d->o", w0_OD, x_D)
        if bias_O is not None:
            y_O = y_O + bias_O
        for candidate_idx, roc_idx in reference_kept(
            x_D, candidates=candidates, budgets=budgets, weights=weights, gate=gate
        ):
            rocs = candidates[candidate_idx]
            response = torch.dot(rocs.a_RD[roc_idx], x_D)
            y_O = y_O + gate.eta * weights[candidate_idx] * response * rocs.b_RO[roc_idx]
        rows.append(y_O)
    return torch.stack(rows) if rows else x_TD.new_zeros((0, w0_OD.shape[0]))


def reference_kept(
    x_D: torch.Tensor,
    *,
    candidates: Sequence[RankOneComponents],
    budgets: Sequence[int],
    weights: Sequence[float],
    gate: GateParameters,
) -> list[tuple[int, int]]:
    """The kept components of one token as (candidate, component), by falling score within each contest."""
    contests: list[list[tuple[float, int, int]]] = []
    for candidate_idx, rocs in enumerate(candidates):
        entries: list[tuple[float, int, int]] = []
        for roc_idx in range(rocs.num_rocs):
            score = abs(float(torch.dot(rocs.a_RD[roc_idx], x_D)))
            if gate.score is RocScore.CONTRIBUTION:
                score *= float(torch.linalg.vector_norm(rocs.b_RO[roc_idx]))
            if gate.scope is GateScope.GLOBAL:
                score *= abs(weights[candidate_idx])
            entries.append((score, candidate_idx, roc_idx))
        contests.append(entries)
    places = list(budgets)
    if gate.scope is GateScope.GLOBAL:
        contests, places = [[entry for contest in contests for entry in contest]], [sum(budgets)]
    kept: list[tuple[int, int]] = []
    for contest, num_places in zip(contests, places, strict=True):
        # Falling score; among equals the earlier candidate, then the lower index.
        ordered = sorted(contest, key=lambda entry: (-entry[0], entry[1], entry[2]))
        kept.extend((candidate_idx, roc_idx) for _, candidate_idx, roc_idx in ordered[:num_places])
    return kept
