"""Making tokens less likely that were said before.

Shapes: V vocabulary, P distinct tokens that a penalty may concern.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from services.worker.engine.sampling.sampling_params import SamplingParams


class Penalties:
    """One request's tokens and their number, and what they cost.

    Args:
        params: whose penalties.
        prompt_token_ids: count for the repetition penalty only.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Iterable[int]) -> None:
        self._params = params
        # The repetition penalty alone looks at the prompt; without it, the prompt's tokens would be gathered in vain.
        known = dict.fromkeys(prompt_token_ids) if params.repetition_penalty != 1 else {}
        self._place_of = {token_id: place for place, token_id in enumerate(known)}
        self._token_ids = list(known)
        self._counts = [0] * len(known)

    def count(self, token_id: int) -> None:
        """The answer has one more of this token."""
        place = self._place_of.setdefault(token_id, len(self._token_ids))
        if place == len(self._token_ids):
            self._token_ids.append(token_id)
            self._counts.append(0)
        self._counts[place] += 1

    def apply_(self, logits_V: torch.Tensor) -> None:
        """Change the logits in place."""
        if not self._token_ids:
            return
        token_ids_P = torch.tensor(self._token_ids, dtype=torch.int64, device=logits_V.device)
        counts_P = torch.tensor(self._counts, dtype=logits_V.dtype, device=logits_V.device)
        seen_P = logits_V[token_ids_P]
        params = self._params
        if (factor := params.repetition_penalty) != 1:
            seen_P = torch.where(seen_P > 0, seen_P / factor, seen_P * factor)
        seen_P -= params.frequency_penalty * counts_P + params.presence_penalty * (counts_P > 0)
        logits_V[token_ids_P] = seen_P
