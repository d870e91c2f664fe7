"""PHATGOOSE (2402.05859), written out: standardised gate vectors and tokens, the best two adapters of each token."""

from __future__ import annotations

import math

import pytest
import torch

from hilora.adapter import adapter_id_of
from hilora.errors import InvalidInput
from hilora.learned_gate import GateTensors, LearnedGate
from hilora.routing_plan import GateRule
from tests.builders.strategy_bed import NAMES, assert_same_logits, delta, factors, names_of, texts

GATE_ID = "phatgoose-bed@1"


def vectors() -> dict[str, dict[str, torch.Tensor]]:
    """A gate vector by layer and adapter name."""
    generator = torch.Generator().manual_seed(5)
    return {
        path: {
            name: torch.randn(factors(name)[path][0].shape[1], generator=generator, dtype=torch.float64) * 3 + 0.5
            for name in NAMES
        }
        for path in factors(NAMES[0])
    }


def gate() -> LearnedGate:
    return LearnedGate(
        rule=GateRule.PHATGOOSE,
        modules={
            path: GateTensors(gates={adapter_id_of(name, "testbed"): vector for name, vector in of_path.items()})
            for path, of_path in vectors().items()
        },
    )


def standardised(rows: torch.Tensor) -> torch.Tensor:
    return (rows - rows.mean(dim=-1, keepdim=True)) / rows.std(dim=-1, unbiased=False, keepdim=True)


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    bed.add_gate(GATE_ID, gate())
    question = {"gate_ids": {"phatgoose": GATE_ID}}
    plan = bed.decide("phatgoose", text, question=question, max_candidates=len(NAMES)).plan
    assert sorted(names_of(plan)) == sorted(NAMES)
    learned = vectors()

    def phatgoose(path: str, x_TD: torch.Tensor) -> torch.Tensor:
        gates_LD = standardised(torch.stack([learned[path][name] for name in NAMES]))
        scores_TL = standardised(x_TD) @ gates_LD.T / math.sqrt(x_TD.shape[1])
        best = scores_TL.topk(2, dim=1)
        weights_TL = torch.zeros_like(scores_TL).scatter(1, best.indices, torch.softmax(best.values, dim=1))
        outputs_TLO = torch.stack([x_TD @ delta(name, path).T for name in NAMES], dim=1)
        return (weights_TL[:, :, None] * outputs_TLO).sum(dim=1)

    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, phatgoose))


def test_without_a_gate_it_says_how_to_get_one(bed):
    with pytest.raises(InvalidInput) as raised:
        bed.decide("phatgoose", texts()[0])
    assert raised.value.code == "strategy_needs_gate"
    assert "hilora train gate --method phatgoose" in raised.value.remedy
    assert "HILORA_ROUTER_GATES" in raised.value.remedy
