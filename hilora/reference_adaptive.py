"""The rules of `adaptive_gating` once more, slowly and literally: the oracle that fast code is compared with.

Written from the papers' definitions, with whole updates instead of components: no basis is trusted, no product is
reused, and nothing is shared with the fast code.

Shapes: T tokens, D in-features, O out-features, R components of one candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hilora.adapter import RankOneComponents
from hilora.learned_gate import GateTensors
from hilora.routing_plan import GateParameters, GateRule


def reference_adaptive_update(
    x_TD: torch.Tensor,
    *,
    candidates: Sequence[RankOneComponents],
    adapter_ids: Sequence[str],
    weights: Sequence[float],
    gate: GateParameters,
    learned: GateTensors | None = None,
) -> torch.Tensor:
    """What the candidates add to a layer's output when all of their components take part, `[T, O]`.

    Args:
        x_TD: the tokens' inputs of one linear layer.
        candidates: the components of each candidate that has some in this layer.
        adapter_ids: under which the learned gate knows them.
        weights: factor of each candidate's output.
        gate: the token-level rule; not `ROCS`.
        learned: this layer's tensors of a learned gate.
    """
    rows: list[torch.Tensor] = []
    for x_D in x_TD:
        if gate.rule is GateRule.SMORA:
            assert learned is not None
            factors = _rank_factors(x_D, adapter_ids, gate, learned)
        else:
            alphas = reference_alphas(x_D, candidates=candidates, adapter_ids=adapter_ids, gate=gate, learned=learned)
            factors = [[alpha] * rocs.num_rocs for alpha, rocs in zip(alphas, candidates, strict=True)]
        y_O = x_D.new_zeros(candidates[0].b_RO.shape[1])
        for rocs, weight, of_rocs in zip(candidates, weights, factors, strict=True):
            for roc_idx, factor in enumerate(of_rocs):
                response = torch.dot(rocs.a_RD[roc_idx], x_D)
                y_O = y_O + gate.eta * weight * factor * response * rocs.b_RO[roc_idx]
        rows.append(y_O)
    return torch.stack(rows)


def reference_alphas(
    x_D: torch.Tensor,
    *,
    candidates: Sequence[RankOneComponents],
    adapter_ids: Sequence[str],
    gate: GateParameters,
    learned: GateTensors | None = None,
) -> list[float]:
    """One token's factor of each candidate. Arguments as in `reference_adaptive_update`."""
    updates = [rocs.b_RO.T @ rocs.a_RD for rocs in candidates]
    if gate.rule is GateRule.SEQR:
        lengths = [float(torch.linalg.vector_norm(update_OD @ x_D)) for update_OD in updates]
        return [float(idx == lengths.index(max(lengths))) for idx in range(len(lengths))]
    if gate.rule is GateRule.ARROW:
        scores = [abs(float(torch.dot(torch.linalg.svd(update_OD).Vh[0], x_D))) for update_OD in updates]
    elif gate.rule is GateRule.SPECTR:
        scores = [float(torch.linalg.vector_norm(update_OD @ x_D)) for update_OD in updates]
    else:
        assert learned is not None
        scores = _learned_scores(x_D, updates, adapter_ids, gate, learned)
    return _softmax_of_best(scores, contest=scores, gate=gate)


def _learned_scores(
    x_D: torch.Tensor,
    updates: Sequence[torch.Tensor],
    adapter_ids: Sequence[str],
    gate: GateParameters,
    learned: GateTensors,
) -> list[float]:
    if gate.rule is GateRule.PHATGOOSE:
        scale = math.sqrt(len(x_D))
        token_D = _standardized(x_D)
        return [float(torch.dot(_standardized(learned.gates[name]), token_D)) / scale for name in adapter_ids]
    assert gate.rule is GateRule.RAMOLE, gate.rule
    assert learned.router_a_GD is not None, "a RAMoLE gate has a router"
    assert learned.router_b_OG is not None, "a RAMoLE gate has a router"
    q_G = learned.router_a_GD @ x_D
    keys = [learned.router_b_OG.T @ (update_OD @ x_D) for update_OD in updates]
    return [float(torch.dot(q_G, key_G)) / math.sqrt(len(q_G)) for key_G in keys]


def _rank_factors(
    x_D: torch.Tensor, adapter_ids: Sequence[str], gate: GateParameters, learned: GateTensors
) -> list[list[float]]:
    scores: list[float] = []
    contest: list[float] = []
    for name in adapter_ids:
        of_rocs = [float(torch.dot(row_D, x_D)) for row_D in learned.gates[name]]
        biases = learned.biases.get(name, torch.zeros(len(of_rocs))).tolist()
        scores += of_rocs
        contest += [score + bias for score, bias in zip(of_rocs, biases, strict=True)]
    factors = iter(_softmax_of_best(scores, contest=contest, gate=gate))
    return [[next(factors) for _ in range(len(learned.gates[name]))] for name in adapter_ids]


def _softmax_of_best(scores: Sequence[float], *, contest: Sequence[float], gate: GateParameters) -> list[float]:
    num_kept = gate.top_k or len(scores)
    kept = sorted(range(len(scores)), key=lambda idx: (-contest[idx], idx))[:num_kept]
    highest = max(scores[idx] for idx in kept)
    weights = {idx: math.exp((scores[idx] - highest) / gate.temperature) for idx in kept}
    total = sum(weights.values())
    return [weights.get(idx, 0.0) / total for idx in range(len(scores))]


def _standardized(vector_D: torch.Tensor) -> torch.Tensor:
    entries = vector_D.tolist()
    mean = sum(entries) / len(entries)
    deviation = math.sqrt(sum((entry - mean) ** 2 for entry in entries) / len(entries))
    return torch.tensor([(entry - mean) / deviation for entry in entries], dtype=vector_D.dtype)
