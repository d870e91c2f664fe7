"""The default score of a pool: the Gaussian and the wording of each adapter's samples, stacked.

    ln p(i | text)  =  score_i / T  +  b lexical_i  +  const

`score` is the empirical-Bayes log-likelihood, `lexical` how the text is written. `T` and `b` are fitted to texts that
neither of the two has seen; a second pair, for texts that no adapter explains better than a new task would, is fitted
to such texts alone. In a large pool the Gaussian chooses the `SHORTLIST` best adapters, and the wording decides among
them: the posterior of all others stays what the Gaussian says.

Shapes: L adapters, C shortlisted ones, N held-out texts, G grams of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hilora.character_grams import GramCounts, GramIds, SampleGrams, counts_of_each
from hilora.covariance import FloatArray
from hilora.empirical_bayes import HeldOutScores, PooledEmpiricalBayes, fit_statistics, held_out_scores
from hilora.gaussian_index import highest
from hilora.held_out_samples import NUM_FOLDS, choose_calibration
from hilora.lexical_pool import LexicalPool
from hilora.pool_statistics import SampleBlocks
from hilora.score_stack import KNOWN_TEXTS, StackWeights, fit_stack_weights, mean_spread, unknown_texts

SHORTLIST = 64
"""Adapters whose wording is looked at: the cost of a request does not grow with the pool beyond."""

_MAX_ROWS = 512
"""Held-out texts that are enough for two numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalStack:
    """A pool's wordings with the weight that they have."""

    lexical: LexicalPool
    weights: StackWeights
    """Of texts that some adapter explains, fitted to all."""
    unknown_weights: StackWeights
    """Of the others, fitted to those alone."""

    @property
    def has_weight(self) -> bool:
        """Whether the wording can make any difference."""
        return self.weights.lexical_weight > 0.0 or self.unknown_weights.lexical_weight > 0.0

    def combined(
        self, scores_C: FloatArray, ids_G: GramIds, idx_C: NDArray[np.intp], *, is_unknown: bool
    ) -> FloatArray:
        """Stacked scores of one text: the logarithm of the posterior, up to a constant.

        Args:
            scores_C: log-likelihoods under some adapters, up to a constant.
            ids_G: the text's grams.
            idx_C: the adapters' places.
            is_unknown: whether none of them explains the text better than a new task would.
        """
        weights = self.unknown_weights if is_unknown else self.weights
        return weights.combined(scores_C, self.lexical.scores(ids_G, idx_C))

    def extended(self, newcomers: Sequence[SampleGrams | None]) -> LexicalStack:
        """The same with adapters that came after the fit, at the places after the others."""
        return replace(self, lexical=self.lexical.extended(newcomers))


def fit_stacked(
    samples: SampleBlocks, grams: Sequence[SampleGrams | None]
) -> tuple[PooledEmpiricalBayes, LexicalStack | None]:
    """Fit a pool.

    Args:
        samples: one `[m_i, E]` array of embeddings per adapter.
        grams: those of the same texts in the same order; None for an adapter whose texts are not known, which the
            wording then speaks neither for nor against.

    Returns:
        The Gaussian model with a temperature of its own, for texts without grams; and the stack, None where the
        wording makes no difference.

    Raises:
        ValueError: see `PoolStatistics.of`.
    """
    calibration = choose_calibration(samples)
    held_out = held_out_scores(calibration)
    model = fit_statistics(calibration.whole_pool(), temperature=held_out.temperature)
    known = [
        None if own is None or own.num_samples != len(block) else own for own, block in zip(grams, samples, strict=True)
    ]
    if sum(own is not None for own in known) < 2:
        return model, None
    # Counted once for this pool and all that leave a fold of a few adapters out.
    counts = counts_of_each(known)
    chosen = frozenset(calibration.chosen_C.tolist())
    weights, unknown_weights = _cross_fitted_weights(held_out, known, counts, chosen)
    stack = LexicalStack(lexical=LexicalPool.fit(counts), weights=weights, unknown_weights=unknown_weights)
    return model, stack if stack.has_weight else None


def _cross_fitted_weights(
    held_out: HeldOutScores,
    grams: Sequence[SampleGrams | None],
    counts: Sequence[GramCounts | None],
    chosen: frozenset[int],
) -> tuple[StackWeights, StackWeights]:
    """The numbers for both kinds of text, from texts that were held out of both scores."""
    scores: list[NDArray[np.floating]] = []
    lexical: list[FloatArray] = []
    true_idx: list[int] = []
    unknown: list[bool] = []
    step = -(-len(held_out.true_idx_N) // _MAX_ROWS) or 1
    rows_N = np.arange(0, len(held_out.true_idx_N), step)
    num_shortlisted = min(len(grams), SHORTLIST)
    for fold in np.unique(held_out.fold_N[rows_N]):
        pool = _without_fold(grams, counts, chosen, int(fold))
        for row in rows_N[held_out.fold_N[rows_N] == fold]:
            own = grams[int(held_out.true_idx_N[row])]
            idx_C = highest(held_out.scores_NL[row], num_shortlisted)
            at = np.flatnonzero(idx_C == held_out.true_idx_N[row])
            if own is None or not len(at):
                continue
            scores.append(held_out.scores_NL[row, idx_C])
            lexical.append(pool.scores(own.sample(int(held_out.ordinal_N[row])), idx_C))
            true_idx.append(int(at[0]))
            unknown.append(bool(held_out.is_unknown_N[row]))
    shape = (len(true_idx), num_shortlisted)
    scores_NC, lexical_NC = np.array(scores).reshape(shape), np.array(lexical).reshape(shape)
    true_idx_N, unknown_N = np.array(true_idx, dtype=np.intp), np.array(unknown, dtype=np.bool_)
    spread = mean_spread(lexical_NC)
    known, others = (
        fit_stack_weights(scores_NC[rows], lexical_NC[rows], true_idx_N[rows], prior=prior, spread=spread)
        for rows, prior in ((np.ones_like(unknown_N), KNOWN_TEXTS), (unknown_N, unknown_texts(scores_NC)))
    )
    return known, others


def _without_fold(
    grams: Sequence[SampleGrams | None], counts: Sequence[GramCounts | None], chosen: frozenset[int], fold: int
) -> LexicalPool:
    """The wordings without the texts that are held out in a fold."""

    def counts_of(place: int) -> GramCounts | None:
        own = grams[place]
        if own is None or place not in chosen or own.num_samples == 1:
            return counts[place]
        return own.counts(np.arange(own.num_samples) % NUM_FOLDS != fold)

    return LexicalPool.fit([counts_of(place) for place in range(len(grams))])
