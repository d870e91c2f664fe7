"""Whether a conversation has left the topic that its plan was made for.

Let `K` be the adapters of the plan, `p` the calibrated posterior of the new text, `r_i` the log-likelihood ratio of
adapter i against a task that the pool has no adapter for, and `r_K` the largest of the plan's. The topic has moved when
another adapter j leaves the plan's no chance, and comes near to explaining the text:

    p_j  >  odds * sum_{i in K} p_i        and        r_j  >=  min(0, (1 - share) * r_K)

At `r_j = 0` it explains the text as well as a new task would. Below that it has to close a share of the gap between the
plan's adapters and a new task: another wording of j's task lies far from the plan's adapters and near j, while a text
that says little ("and now this one?") lies far from both. The posterior alone cannot tell the two apart: far from
everything it is just as certain. Without evidence of another topic the topic stays.

Shapes: E embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.fitted_pool import FittedPool


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicRules:
    """When a topic has moved. Both values are argued in docs/experiments.md."""

    odds: float = 9.0
    """How many times as likely as the plan's adapters together another one must be: at least 1. 9 to 1 is the 90 % of
    `RoutingSettings.candidate_mass`, by which a single candidate is enough."""
    share: float = 0.7
    """Share of the gap between the plan's adapters and a new task that the other one must close, where it does not
    explain the text itself; within [0, 1]."""

    def __post_init__(self) -> None:
        if not self.odds >= 1.0:
            raise ValueError(f"odds {self.odds} are below 1")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share {self.share} is outside [0, 1]")


DEFAULT_RULES = TopicRules()
"""The rules where nobody sets others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicVerdict:
    """What a new text says of a plan."""

    has_moved: bool
    kept_posterior: float
    """Of the plan's adapters together."""
    challenger: str | None
    """Name of the likeliest adapter that is not in the plan; None if there is no other."""
    challenger_posterior: float
    challenger_ratio: float
    """Log-likelihood ratio against a new task, in nats; minus infinity without a challenger."""


def watch_topic(
    pool: FittedPool,
    z_E: NDArray[np.floating],
    *,
    kept_places: NDArray[np.intp],
    excluded: NDArray[np.intp],
    rules: TopicRules = DEFAULT_RULES,
) -> TopicVerdict:
    """Whether a text belongs to another topic than a plan.

    Args:
        pool: the fitted adapters.
        z_E: the text's embedding.
        kept_places: where the plan's adapters stand, none excluded; without any, an adapter that explains the text
            moves the topic.
        excluded: places of adapters that must not be chosen.
        rules: when the topic has moved.

    Raises:
        ValueError: an embedding of another dimension, or with values that are not finite.
    """
    kept = np.unique(kept_places)
    scores = pool.score_nearest(pool.checked(z_E), num_results=len(kept) + 1, excluded=excluded, also=kept)
    is_kept_C = np.isin(scores.idx_C, kept)
    kept_posterior = float(scores.posterior_C[is_kept_C].sum())
    others = np.flatnonzero(~is_kept_C)
    if not len(others):
        return TopicVerdict(
            has_moved=False,
            kept_posterior=kept_posterior,
            challenger=None,
            challenger_posterior=0.0,
            challenger_ratio=-np.inf,
        )
    best = int(others[0])
    challenger_posterior, ratio = float(scores.posterior_C[best]), float(scores.ratios_C[best])
    kept_ratio = float(scores.ratios_C[is_kept_C].max(initial=-np.inf))
    # A plan without adapters leaves no gap to close: only what explains the text ends it.
    least_ratio = min(0.0, (1.0 - rules.share) * kept_ratio) if len(kept) else 0.0
    return TopicVerdict(
        has_moved=ratio >= least_ratio and challenger_posterior > rules.odds * kept_posterior,
        kept_posterior=kept_posterior,
        challenger=pool.profiles[int(scores.idx_C[best])].adapter_name,
        challenger_posterior=challenger_posterior,
        challenger_ratio=ratio,
    )
