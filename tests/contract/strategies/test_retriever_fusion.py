"""LoraRetriever's fusion (2402.09997), written out: the means of both factors, multiplied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.builders.strategy_bed import (
    NAMES,
    assert_same_logits,
    embed,
    factors,
    means,
    mixture,
    names_of,
    texts,
)


@pytest.mark.parametrize("text", texts())
def test_logits_equal_the_plain_implementation(bed, plain, text):
    nearest = np.argsort(-(means() @ embed(text).astype(np.float64)))[:3]
    chosen = [NAMES[place] for place in nearest]

    def fusion(path: str, x_TD: torch.Tensor) -> torch.Tensor:
        pairs = [factors(name)[path] for name in chosen]
        a_RD = sum(torch.nn.functional.pad(a_RD, (0, 0, 0, 8 - len(a_RD))) for a_RD, _ in pairs) / 3
        b_OR = sum(torch.nn.functional.pad(b_OR, (0, 8 - b_OR.shape[1])) for _, b_OR in pairs) / 3
        return x_TD @ a_RD.T @ b_OR.T

    plan = bed.decide("retriever-fusion", text).plan
    tokens, logits = bed.answer(plan, text)

    assert names_of(plan) == chosen
    expected = plain.logits(bed.prompt_ids(text), tokens, fusion)
    assert_same_logits(logits, expected)
    without_cross_terms = plain.logits(bed.prompt_ids(text), tokens, mixture(dict.fromkeys(chosen, 1 / 3)))
    assert (without_cross_terms - expected).abs().max() > 0.1


def test_what_was_merged_is_kept(bed):
    plan = bed.decide("retriever-fusion", texts()[0]).plan
    bed.answer(plan, texts()[0])
    before = bed.merged.stats()
    prepared = bed.prepared(plan, texts()[1])
    bed.merged.fetch(prepared.budgets[0].adapter_id, prepared.gate.basis)
    after = bed.merged.stats()
    assert (after.num_misses, after.num_hits) == (before.num_misses, before.num_hits + 1)
