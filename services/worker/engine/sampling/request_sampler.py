"""One request's rules for its tokens, its stream of random numbers, and what they need to remember.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from services.worker.engine.sampling.penalties import Penalties
from services.worker.engine.sampling.sampling_params import SamplingParams

_MAX_INVERSE_TEMPERATURE = 1e30
"""A float32 holds it, and nothing but equals of the likeliest token survives it."""


class GrammarMatcher(Protocol):
    """How far an answer has come in a grammar."""

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer must end here."""
        ...

    def allowed_tokens(self) -> NDArray[np.bool_]:
        """Which tokens may come next, `[V]`; end-of-sequence tokens are not among them.

        Raises:
            GenerationFailed: `grammar_failed`, the grammar is too complex to follow.
        """
        ...

    def accept(self, token_id: int) -> None:
        """The answer has this token.

        Raises:
            GenerationFailed: `grammar_failed`.
        """
        ...


class RequestSampler:
    """Rules and random numbers of one request. It remembers the tokens it was told of; nothing is told twice.

    Args:
        params: the rules.
        prompt_token_ids: for the repetition penalty.
        eos_token_ids: tokens that end an answer.
        grammar: what the answer must look like, at its beginning.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_token_ids: Sequence[int] = (),
        eos_token_ids: frozenset[int] = frozenset(),
        grammar: GrammarMatcher | None = None,
    ) -> None:
        self.params = params
        self.inverse_temperature = 0.0 if params.is_greedy else min(1 / params.temperature, _MAX_INVERSE_TEMPERATURE)
        self._generator = None if params.is_greedy else np.random.Generator(np.random.PCG64(params.seed))
        self._penalties = Penalties(params, prompt_token_ids) if params.is_penalising else None
        self._grammar = grammar
        self._eos_token_ids = sorted(eos_token_ids)
        self._final_token_ids = sorted({*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)})
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens it was told of."""
        return self._num_tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self._generator is None

    @property
    def is_plain(self) -> bool:
        """Whether the next token is chosen from the model's logits as they are."""
        return (
            self._penalties is None
            and self._grammar is None
            and not self.params.logit_bias
            and self._num_tokens >= self.params.min_tokens
        )

    @property
    def is_limited(self) -> bool:
        """Whether the tail of unlikely tokens is cut off."""
        params = self.params
        return params.top_k > 0 or params.top_p < 1 or params.min_p > 0

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell with each one; None for no log-probabilities."""
        return self.params.logprobs

    def next_random(self) -> float:
        """The next number in [0, 1)."""
        assert self._generator is not None, "a greedy request draws nothing"
        return self._generator.random()

    def shape(self, logits_V: torch.Tensor) -> torch.Tensor:
        """The logits under the request's rules, as a copy: grammar, `min_tokens`, biases, penalties.

        Raises:
            GenerationFailed: the grammar cannot be followed.
        """
        logits_V = logits_V.clone()
        if self._grammar is not None:
            self._forbid(logits_V, self._grammar)
        if self._num_tokens < self.params.min_tokens:
            logits_V[self._final_token_ids] = -torch.inf
        if bias := self.params.logit_bias:
            token_ids = torch.tensor(list(bias), dtype=torch.int64, device=logits_V.device)
            logits_V[token_ids] += torch.tensor(list(bias.values()), dtype=logits_V.dtype, device=logits_V.device)
        if self._penalties is not None:
            self._penalties.apply_(logits_V)
        return logits_V

    def accept(self, token_id: int) -> bool:
        """Take note of a chosen token. Returns whether it completes the grammar, so that nothing may follow.

        Raises:
            GenerationFailed: the grammar cannot be followed.
        """
        self._num_tokens += 1
        if self._penalties is not None:
            self._penalties.count(token_id)
        if self._grammar is None or token_id in self._eos_token_ids:
            return False
        self._grammar.accept(token_id)
        return self._grammar.is_complete

    def _forbid(self, logits_V: torch.Tensor, grammar: GrammarMatcher) -> None:
        allowed_V = grammar.allowed_tokens()
        allowed_V[self._eos_token_ids] = grammar.is_accepting and not self.params.ignore_eos
        forbidden_V = torch.from_numpy(~allowed_V).to(logits_V.device)
        logits_V.masked_fill_(forbidden_V, -torch.inf)
