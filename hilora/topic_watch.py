"""Whether a conversation has left the topic that its plan was made for.

Let `K` be the adapters of the plan, `p` the calibrated posterior of the new text and `r_i` the log-likelihood ratio of
adapter i against a task that the pool has no adapter for. The topic has moved when another adapter explains the text
and leaves the plan's no chance:

    max_{j not in K} p_j  >  odds * sum_{i in K} p_i        and        r_j >= 0

A text that says little ("and now this one?") spreads its posterior over the pool, so that no single adapter takes
`odds` times what the plan's have together; one that no adapter explains has no `r_j >= 0`. Both leave the plan as it
is: without evidence of another topic the topic stays.

Shapes: E embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilora.fitted_pool import FittedPool

DEFAULT_ODDS = 9.0
"""The posterior that makes a single candidate: 9 to 1 is the 90 % of `RoutingSettings.candidate_mass`."""


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
    odds: float = DEFAULT_ODDS,
) -> TopicVerdict:
    """Whether a text belongs to another topic than a plan.

    Args:
        pool: the fitted adapters.
        z_E: the text's embedding.
        kept_places: where the plan's adapters stand, none excluded; without any, each adapter that explains the text
            moves the topic.
        excluded: places of adapters that must not be chosen.
        odds: how many times as likely as the plan's adapters together the other one must be.

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
    return TopicVerdict(
        has_moved=ratio >= 0.0 and challenger_posterior > odds * kept_posterior,
        kept_posterior=kept_posterior,
        challenger=pool.profiles[int(scores.idx_C[best])].adapter_name,
        challenger_posterior=challenger_posterior,
        challenger_ratio=ratio,
    )
