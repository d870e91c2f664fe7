"""RAMoLE (2406.16989), written out: attention of a router LoRA to the outputs of the three nearest adapters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.routing_plan import GateRule
from tests.builders.strategy_bed import NAMES, assert_same_logits, delta, embed, factors, means, names_of, texts

GATE_ID = "ramole-bed@1"
RANK = 5


def routers() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """`A_r [G, D]` and `B_r [O, G]` by layer."""
    generator = torch.Generator().manual_seed(6)
    found = {}
    for path, (a_RD, b_OR) in factors(NAMES[0]).items():
        found[path] = tuple(
            torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3
            for shape in ((RANK, a_RD.shape[1]), (b_OR.shape[0], RANK))
        )
    return found


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    learned = routers()
    modules = {path: GateTensors(router_a_GD=a_GD, router_b_OG=b_OG) for path, (a_GD, b_OG) in learned.items()}
    bed.add_gate(GATE_ID, LearnedGate(rule=GateRule.RAMOLE, modules=modules))
    nearest = [NAMES[place] for place in np.argsort(-(means() @ embed(text).astype(np.float64)))[:3]]
    plan = bed.decide("ramole", text, question={"gate_ids": {"ramole": GATE_ID}}).plan
    assert names_of(plan) == nearest

    def ramole(path: str, x_TD: torch.Tensor) -> torch.Tensor:
        a_GD, b_OG = learned[path]
        rows = []
        for x_D in x_TD:
            outputs = [delta(name, path) @ x_D for name in nearest]
            query_G = a_GD @ x_D
            scores = torch.stack([query_G @ (b_OG.T @ v_O) / math.sqrt(RANK) for v_O in outputs])
            weights = torch.softmax(scores, dim=0)
            rows.append(sum(weight * v_O for weight, v_O in zip(weights, outputs, strict=True)))
        return torch.stack(rows)

    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, ramole))


def test_without_a_gate_it_says_how_to_get_one(bed):
    with pytest.raises(InvalidInput) as raised:
        bed.decide("ramole", texts()[0])
    assert raised.value.code == "strategy_needs_gate"
    assert "hilora train gate --method ramole" in raised.value.remedy
