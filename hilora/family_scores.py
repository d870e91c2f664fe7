"""Log-likelihoods of a pool under each covariance family: what the paper's mode scores with, and ablations.

Each family is fitted at its first use: a server that only ever routes in the calibrated mode never pays for them.

Shapes: L adapters, M samples, E embedding dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hilora.covariance import FloatArray
from hilora.empirical_bayes import fit_pooled_eb
from hilora.gaussian import CovarianceFamily, fit_gaussian
from hilora.pool_statistics import SampleBlocks
from hilora.pooled_gaussian import fit_pooled
from hilora.stacked_gaussians import StackedGaussians

_Scorer = Callable[[NDArray[np.floating]], FloatArray]


class FamilyScores:
    """A pool under every family. Safe to share between threads.

    Args:
        samples: one `[m_i, E]` array per adapter.
    """

    def __init__(self, samples: SampleBlocks) -> None:
        self._samples = samples
        self._scorers: dict[tuple[CovarianceFamily, float], _Scorer] = {}
        self._lock = threading.Lock()

    def log_likelihoods(self, z_E: NDArray[np.floating], *, family: CovarianceFamily, shrinkage: float) -> FloatArray:
        """The log-likelihood of one text under each adapter, `[L]`, in nats.

        Args:
            z_E: the text's embedding.
            family: what is assumed of a covariance.
            shrinkage: share of the isotropic part under `CovarianceFamily.FULL`.
        """
        key = (family, shrinkage)
        with self._lock:
            if key not in self._scorers:
                self._scorers[key] = _fit_scorer(self._samples, family=family, shrinkage=shrinkage)
            scorer = self._scorers[key]
        return scorer(z_E)


def _fit_scorer(samples: SampleBlocks, *, family: CovarianceFamily, shrinkage: float) -> _Scorer:
    if family is CovarianceFamily.POOLED:
        return fit_pooled(samples).log_likelihood
    if family is CovarianceFamily.POOLED_EB:
        return fit_pooled_eb(samples).log_likelihood
    gaussians = [fit_gaussian(block, family=family, shrinkage=shrinkage) for block in samples]
    return StackedGaussians(gaussians).log_likelihood
