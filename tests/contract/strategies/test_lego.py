"""LoRA-LEGO (2409.16167), written out in loops over points, on what the strategy chose."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hilora.routing_plan import PlanPreparation, PreparationMethod
from hilora.strategies import RoutingQuestion
from hilora.strategies.lego import LegoStrategy
from tests.builders.strategy_bed import (
    NAMES,
    assert_same_logits,
    embed,
    factors,
    mixture,
    names_of,
    texts,
)

K = 8


def lego(path: str, names: list[str], k: int) -> torch.Tensor:
    """The merged update of one layer, point by point."""
    points = []
    for name in sorted(names):
        a_RD, b_OR = (factor.numpy() for factor in factors(name)[path])
        for a_D, b_O in zip(a_RD, b_OR.T, strict=True):
            length = math.sqrt(np.linalg.norm(a_D) * np.linalg.norm(b_O))
            points.append(np.concatenate([a_D / np.linalg.norm(a_D), b_O / np.linalg.norm(b_O)]) * length)
    num_in = len(factors(names[0])[path][0][0])

    def distance(point, centre):
        return min(np.sum((point - centre) ** 2), np.sum((point + centre) ** 2))

    chosen = [int(np.argmax([np.linalg.norm(point) for point in points]))]
    while len(chosen) < k:
        nearest = [
            -1.0 if place in chosen else min(distance(point, points[other]) for other in chosen)
            for place, point in enumerate(points)
        ]
        chosen.append(int(np.argmax(nearest)))
    centres, owners = [points[place] for place in chosen], None
    while True:
        found = [int(np.argmin([distance(point, centre) for centre in centres])) for point in points]
        signs = [-1.0 if point @ centres[owner] < 0 else 1.0 for point, owner in zip(points, found, strict=True)]
        if found == owners:
            break
        owners = found
        assert set(owners) == set(range(k)), "the case has no cluster that loses all members"
        centres = [
            np.mean([sign * point for point, sign, own in zip(points, signs, owners, strict=True) if own == c], axis=0)
            for c in range(k)
        ]
    total = np.zeros((len(points[0]) - num_in, num_in))
    for c in range(k):
        members = [sign * point for point, sign, own in zip(points, signs, found, strict=True) if own == c]
        centre = np.mean(members, axis=0)
        centre = centre * np.mean([np.linalg.norm(point) for point in members]) / np.linalg.norm(centre)
        total += np.outer(centre[num_in:], centre[:num_in])
    mean_rank = len(points) / len(names)
    return torch.from_numpy(math.sqrt(mean_rank / k) * total)


@pytest.mark.parametrize("text", texts()[::2])
def test_logits_equal_the_plain_implementation(bed, plain, text):
    plan = bed.decide("lego", text, candidate_mass=1.0, max_candidates=3).plan
    chosen = names_of(plan)
    assert len(chosen) == 3
    updates = {path: lego(path, chosen, K) for path in factors(NAMES[0])}
    tokens, logits = bed.answer(plan, text)
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, lambda path, x_TD: x_TD @ updates[path].T))


def test_as_many_clusters_as_components_and_one_adapter_are_exact(bed, plain):
    text = texts()[0]
    alone = bed.decide("lego", text, max_candidates=1).plan
    assert alone.preparation is None
    tokens, logits = bed.answer(alone, text)
    own = names_of(alone)[0]
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, mixture({own: 1.0})))

    strategy = LegoStrategy(num_rocs=24)
    settings = replace(strategy.settings, candidate_mass=1.0, max_candidates=3)
    all_kept = strategy.decide(bed.router, RoutingQuestion(z_E=embed(text), settings=settings)).plan
    assert all_kept.preparation == PlanPreparation(method=PreparationMethod.LEGO, num_kept=24)
    tokens, logits = bed.answer(all_kept, text)
    # Nothing is clustered; output reweighting: the mean rank of three over their sum.
    weights = dict.fromkeys(names_of(all_kept), math.sqrt(1 / 3))
    assert_same_logits(logits, plain.logits(bed.prompt_ids(text), tokens, mixture(weights)))
