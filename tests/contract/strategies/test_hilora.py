"""HiLoRA's own two modes (2510.12266), token by token in loops over dense rank-one terms."""

from __future__ import annotations

import math

import pytest
import torch

from tests.builders.strategy_bed import assert_same_logits, delta, factors, texts


def components(name: str, path: str, *, in_svd: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`(a, b)` of each rank-one term."""
    if in_svd:
        u, values, vt = torch.linalg.svd(delta(name, path), full_matrices=False)
        return [(values[j] * vt[j], u[:, j]) for j in range(len(factors(name)[path][0]))]
    a_RD, b_OR = factors(name)[path]
    return [(a_RD[j], b_OR[:, j]) for j in range(len(a_RD))]


@pytest.mark.parametrize("text", texts()[1:3])
@pytest.mark.parametrize("strategy", ["hilora", "hilora-paper"])
def test_logits_equal_the_plain_implementation(bed, plain, text, strategy):
    settings = {"candidate_mass": 1.0} if strategy == "hilora" else {"max_candidates": 4}
    plan = bed.decide(strategy, text, **settings).plan
    in_svd, is_global = strategy == "hilora", strategy == "hilora"
    assert len(plan.budgets) >= 2
    terms: dict[str, list] = {}

    def gated(path: str, x_TD: torch.Tensor) -> torch.Tensor:
        if path not in terms:
            terms[path] = [components(budget.adapter_name, path, in_svd=in_svd) for budget in plan.budgets]
        rows = []
        for x_D in x_TD:
            scored = [
                (abs(float(a_D @ x_D)) * (budget.weight if is_global else 1.0), place, a_D, b_O)
                for place, budget in enumerate(plan.budgets)
                for a_D, b_O in terms[path][place]
            ]
            contests = [scored] if is_global else [[s for s in scored if s[1] == i] for i in range(len(plan.budgets))]
            granted = [
                max(1, math.floor(len(of_layer) * budget.num_rocs / budget.lora_rank + 0.5))
                for budget, of_layer in zip(plan.budgets, terms[path], strict=True)
            ]
            places = [sum(granted)] if is_global else granted
            y_O = torch.zeros(delta(plan.budgets[0].adapter_name, path).shape[0], dtype=torch.float64)
            for contest, num_places in zip(contests, places, strict=True):
                for _, place, a_D, b_O in sorted(contest, key=lambda entry: -entry[0])[:num_places]:
                    y_O = y_O + plan.gate.eta * plan.budgets[place].weight * float(a_D @ x_D) * b_O
            rows.append(y_O)
        return torch.stack(rows)

    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, gated))
