"""Choosing the next token from logits.

Shapes: S rows to sample from, V vocabulary.

Each request draws from its own generator, one number a token, and a row is handled by itself: what a request says does
not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hilora.errors import GenerationFailed, HiloraError
from services.worker.engine.sampling_params import SamplingParams


class RequestSampler:
    """One request's rule and its stream of random numbers."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = None if params.is_greedy else np.random.Generator(np.random.PCG64(params.seed))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self._generator is None

    def choose(self, logits_V: torch.Tensor) -> int:
        """Draw a token: temperature, then `top_k`, then `top_p`, then inverse transform sampling.

        Args:
            logits_V: finite at its maximum, on the CPU.
        """
        assert self._generator is not None, "a greedy request draws nothing"
        params = self._params
        # Relative to the maximum before dividing: a tiny temperature must not overflow.
        scores = (logits_V.double() - logits_V.max()) / params.temperature
        token_ids = None
        if 0 < params.top_k < len(scores):
            scores, token_ids = scores.topk(params.top_k)
        elif params.top_p < 1:
            scores, token_ids = scores.sort(descending=True, stable=True)
        mass = scores.softmax(dim=-1).cumsum(dim=-1)
        num_kept = len(mass)
        if params.top_p < 1:
            # The smallest prefix whose mass reaches top_p; the prefix of one token is always kept.
            num_kept = min(num_kept, int(torch.searchsorted(mass, params.top_p * float(mass[-1]))) + 1)
        drawn = self._generator.random() * float(mass[num_kept - 1])
        place = min(int(torch.searchsorted(mass, drawn, right=True)), num_kept - 1)
        return place if token_ids is None else int(token_ids[place])


def sample(logits_SV: torch.Tensor, samplers: Sequence[RequestSampler]) -> list[int | HiloraError]:
    """One token per row, or the error that ends that row's request.

    A row whose maximum is not finite (NaN anywhere, or infinity) yields `non_finite_logits`.
    """
    if not samplers:
        return []
    best_S, argmax_S = logits_SV.max(dim=-1)
    is_finite, greedy = torch.isfinite(best_S).tolist(), argmax_S.tolist()
    chosen: list[int | HiloraError] = []
    for row, sampler in enumerate(samplers):
        if not is_finite[row]:
            chosen.append(
                GenerationFailed(
                    "The model's logits are not finite for this request.",
                    code="non_finite_logits",
                    remedy="One of the plan's adapters holds extreme values; retire it, or name other adapters.",
                )
            )
        elif sampler.is_greedy:
            chosen.append(greedy[row])
        else:
            chosen.append(sampler.choose(logits_SV[row].cpu()))
    return chosen
