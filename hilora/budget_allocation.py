"""How many ROCs each candidate may switch on, and with what weight: equations E5 and E6 and their alternatives.

Shapes: C candidates, in the order they were given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hilora.covariance import FloatArray
from hilora.routing_settings import EtaRule, WeightRule


def round_half_up(value: float) -> int:
    """The nearest integer, halves upwards: Python's `round` takes 2.5 to 2 and 3.5 to 4."""
    return math.floor(value + 0.5)


def total_budget(lora_ranks: Sequence[int], *, gamma: float, confidence_following: bool) -> int:
    """E5: `O = round(gamma * sum r_i)`, within 1 and `sum r_i`.

    Args:
        lora_ranks: `r_i` of the candidates, at least one.
        gamma: share of the ranks that may act.
        confidence_following: grant at least the mean rank, so that a request with one candidate is not cut down.
    """
    budget = round_half_up(gamma * sum(lora_ranks))
    if confidence_following:
        budget = max(budget, round_half_up(sum(lora_ranks) / len(lora_ranks)))
    return min(max(budget, 1), sum(lora_ranks))


def multinomial_counts(
    lora_ranks: Sequence[int], *, shares_C: FloatArray, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """E6: `o ~ Multinomial(O, w)` with `o_i <= r_i`; what a cap cuts off is drawn again among the others.

    Args:
        lora_ranks: the caps.
        shares_C: `w_i`, positive; only ratios matter.
        budget: `O`, at most the sum of the caps.
        rng: decides the draws.
    """
    ranks_C = np.asarray(lora_ranks)
    _check_budget(budget, lora_ranks)
    counts_C = np.zeros(len(ranks_C), dtype=np.int64)
    while (left := budget - int(counts_C.sum())) > 0:
        open_C = np.where(counts_C < ranks_C, np.maximum(shares_C, np.finfo(np.float64).tiny), 0.0)
        counts_C = np.minimum(counts_C + rng.multinomial(left, open_C / open_C.sum()), ranks_C)
    return tuple(int(count) for count in counts_C)


def largest_remainder_counts(lora_ranks: Sequence[int], *, shares_C: FloatArray, budget: int) -> tuple[int, ...]:
    """Counts in proportion to the shares, without chance.

    They sum to `budget`, none exceeds its rank, and each is at least 1; where the budget is too short for that, the
    first candidates are. Whole parts are given first, then one each by falling remainder; what a cap cuts off goes
    to the others in the same way. Equal remainders: the earlier candidate.

    Args:
        lora_ranks: the caps, each at least 1.
        shares_C: not negative; only ratios matter. With a sum of 0 all are equal.
        budget: at most the sum of the caps.
    """
    _check_budget(budget, lora_ranks)
    # Lists: candidates are few, and a request would spend its time on making arrays of them.
    shares = np.asarray(shares_C, dtype=np.float64).tolist()
    total = math.fsum(shares)
    quotas = [budget * (share / total if total > 0.0 else 1.0 / len(shares)) for share in shares]
    least = [int(place < budget) for place in range(len(shares))]
    counts = [
        min(max(math.floor(quota), fewest), rank) for quota, fewest, rank in zip(quotas, least, lora_ranks, strict=True)
    ]
    # One at a time towards the quota: at most as many steps as there are ROCs.
    places = range(len(counts))
    while (left := budget - sum(counts)) != 0:
        if left > 0:
            open_places = [place for place in places if counts[place] < lora_ranks[place]]
            counts[max(open_places, key=lambda place: quotas[place] - counts[place])] += 1
        else:
            spare = [place for place in reversed(places) if counts[place] > least[place]]
            counts[min(spare, key=lambda place: quotas[place] - counts[place])] -= 1
    return tuple(counts)


def candidate_weights(posterior_C: FloatArray, *, rule: WeightRule) -> tuple[float, ...]:
    """Factors of the candidates' outputs; they sum to 1 under every rule but `NONE`."""
    posterior = posterior_C.tolist()
    if rule is WeightRule.NONE:
        return (1.0,) * len(posterior)
    power = {WeightRule.POSTERIOR: 1.0, WeightRule.SHARPENED: 2.0, WeightRule.SQRT: 0.5}[rule]
    most = max(posterior)
    raised = [(one / most) ** power for one in posterior]
    total = math.fsum(raised)
    return tuple(one / total for one in raised)


def variance_factor(lora_ranks: Sequence[int], *, budget: int, rule: EtaRule) -> float:
    """`eta`, the factor of the sum of the kept ROCs.

    `SQRT` is `sqrt(mean rank / O)`: the sum of `O` independent terms keeps the variance of an average adapter's.
    """
    if rule is EtaRule.SQRT:
        return math.sqrt(sum(lora_ranks) / len(lora_ranks) / budget)
    if rule is EtaRule.MEAN:
        return 1.0 / len(lora_ranks)
    return 1.0


def _check_budget(budget: int, lora_ranks: Sequence[int]) -> None:
    if not 0 <= budget <= sum(lora_ranks):
        raise ValueError(f"a budget of {budget} does not fit ranks that sum to {sum(lora_ranks)}")
