"""One answer from its first token to its last: text, stops, log-probabilities, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilora.errors import GenerationFailed
from services.worker.engine.output.detokenizer import Detokenizer, TokenDecoder
from services.worker.engine.output.events import FinishReason, TextDelta
from services.worker.engine.sampling.logprobs import PositionLogprobs, position_logprobs
from services.worker.engine.sampling.sampler import SampledToken
from services.worker.engine.sampling.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionUpdate:
    """What a token changed."""

    delta: TextDelta | None = None
    """What is to be told now; None while the text is not certain yet."""
    finish_reason: FinishReason | None = None
    """Why the answer is over; None while it goes on."""
    stop_reason: str | int | None = None
    """The stop text or stop token that was met."""


class Completion:
    """The tokens of one request's answer and the text they make.

    Args:
        sampling: when the answer ends and what is told of it.
        prompt_token_ids: for the length of the context, and for the prompt's log-probabilities.
        decoder: the model's tokenizer.
        eos_token_ids: tokens that end an answer.
        max_model_len: prompt and answer together never hold more tokens.
    """

    def __init__(
        self,
        *,
        sampling: SamplingParams,
        prompt_token_ids: Sequence[int],
        decoder: TokenDecoder,
        eos_token_ids: frozenset[int],
        max_model_len: int,
    ) -> None:
        self.token_ids: list[int] = []
        self._sampling = sampling
        self._prompt_token_ids = prompt_token_ids
        self._eos_token_ids = eos_token_ids
        self._max_tokens = min(sampling.max_tokens, max_model_len - len(prompt_token_ids))
        self._detokenizer = Detokenizer(
            decoder,
            sampling.stop,
            includes_stop=sampling.include_stop_str_in_output,
            skips_special_tokens=sampling.skip_special_tokens,
        )
        self._num_told = 0
        self._untold_logprobs: list[PositionLogprobs] = []
        self._prompt_logprobs: list[PositionLogprobs] = []
        self._is_prompt_told = False

    def add_prompt_logits(self, logits_nV: torch.Tensor, start: int) -> None:
        """Keep what the model thought of the prompt. Nothing happens unless the request asks for it, nor for positions
        that were seen before: a prompt that is read again after a preemption changes nothing.

        Args:
            logits_nV: row i was computed at position `start + i` and predicts the token after it.
            start: position of the first row.

        Raises:
            GenerationFailed: `non_finite_logits`.
        """
        num_top = self._sampling.prompt_logprobs
        if num_top is None:
            return
        num_seen = len(self._prompt_logprobs)
        token_ids = self._prompt_token_ids[max(start, num_seen) + 1 : start + 1 + len(logits_nV)]
        if not token_ids:
            return
        assert start <= num_seen, "the prompt is read from its beginning, without gaps"
        skipped = num_seen - start
        rows_nV = logits_nV[skipped : skipped + len(token_ids)]
        if not torch.isfinite(rows_nV.amax(-1)).all():
            raise GenerationFailed(
                "The model's logits are not finite for this prompt.",
                code="non_finite_logits",
                remedy="One of the plan's adapters holds extreme values; retire it, or name other adapters.",
            )
        self._prompt_logprobs += position_logprobs(rows_nV, token_ids, [num_top] * len(token_ids))

    def append(self, sampled: SampledToken) -> CompletionUpdate:
        """Add a token; nothing may be added once a `finish_reason` was returned."""
        self.token_ids.append(sampled.token_id)
        if sampled.logprob is not None:
            self._untold_logprobs.append(PositionLogprobs(chosen=sampled.logprob, top=sampled.top_logprobs))
        reason, stop_reason = self._end_by_token(sampled.token_id)
        text = ""
        if reason is None or self._sampling.include_stop_str_in_output:
            may_stop = len(self.token_ids) > self._sampling.min_tokens
            text = self._detokenizer.append(sampled.token_id, may_stop=may_stop)
        if reason is None:
            if self._detokenizer.is_stopped or sampled.completes_grammar:
                reason = FinishReason.STOP
            elif len(self.token_ids) >= self._max_tokens:
                reason = FinishReason.LENGTH
        if reason is not None:
            text += self._detokenizer.finish()
            if self._detokenizer.is_stopped:
                reason, stop_reason = FinishReason.STOP, self._detokenizer.stop_text
        has_news = bool(text) or reason is not None or self._has_untold_prompt
        return CompletionUpdate(
            delta=self._tell(text) if has_news else None, finish_reason=reason, stop_reason=stop_reason
        )

    @property
    def _has_untold_prompt(self) -> bool:
        return bool(self._prompt_logprobs) and not self._is_prompt_told

    def _end_by_token(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        if token_id in self._eos_token_ids and not self._sampling.ignore_eos:
            return FinishReason.STOP, None
        if token_id in self._sampling.stop_token_ids:
            return FinishReason.STOP, token_id
        return None, None

    def _tell(self, text: str) -> TextDelta:
        prompt_logprobs = tuple(self._prompt_logprobs) if self._has_untold_prompt else ()
        self._is_prompt_told = True
        delta = TextDelta(
            text=text,
            token_ids=tuple(self.token_ids[self._num_told :]),
            logprobs=tuple(self._untold_logprobs),
            prompt_logprobs=prompt_logprobs,
        )
        self._num_told = len(self.token_ids)
        self._untold_logprobs.clear()
        return delta
