"""The passes of one step of an encoder-decoder model.

Shapes: E prompts, L tokens of the longest of them, B rows of a decoder pass, n tokens of a row, S rows to sample from,
V vocabulary.

The engine counts a request's tokens in one line, prompt first. For such a model the prompt is the encoder's, which must
see all of it at once, so the chunks of a prompt wait for its last one. At the prompt's last token the decoder reads its
start token, and from there on the answer:

    engine's position    0 ... P-2    P-1            P            P+1 ...
    decoder reads        nothing      start token    1st token    2nd token ...

Under a plan of two phases the encoder reads and the decoder writes.

The rows of an encoder pass are all positions of its padded prompts, those of a decoder pass its tokens: each pass has
ROC segments of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from services.worker.engine.kv.seq2seq_kv_cache import Seq2SeqKvCache
from services.worker.engine.scheduling.request import ActiveRequest
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.lora.gating.batch_plan import StepRocs, StepRocsBuilder, decode_order

_MIN_FILLING = 0.75
"""Prompts are padded to one length if each fills so much of it; a pass of its own is cheaper than more padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderWork:
    """Prompts to be read side by side."""

    token_ids_EL: torch.Tensor
    """Padded at the end."""
    lengths: tuple[int, ...]
    slots: tuple[int, ...]
    rocs: StepRocs | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderWork:
    """Answers that go on by equally many tokens."""

    token_ids_Bn: torch.Tensor
    positions: tuple[int, ...]
    """Position of each row's first token in its answer, the start token being at 0."""
    prompt_lengths: tuple[int, ...]
    slots: tuple[int, ...]
    rocs: StepRocs | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqBatch:
    """What the runner executes: encoder passes, then decoder passes."""

    encoders: tuple[EncoderWork, ...]
    decoders: tuple[DecoderWork, ...]
    logit_rows: tuple[int, ...]
    """Which rows, counted through all decoder passes, are sampled from."""
    sampling: tuple[ActiveRequest, ...]
    """The requests of those rows, in order."""
    prompt_logits: tuple[()] = ()
    """An encoder predicts nothing."""

    def sampled_logits(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """The rows to sample from: all there are."""
        return logits_SV


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """One request's share of a step, as the decoder counts."""

    work: ScheduledWork
    slot: int
    start: int
    stop: int

    @property
    def active(self) -> ActiveRequest:
        return self.work.active

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


class Seq2SeqBatcher:
    """Builds the passes of steps.

    Args:
        builder: makes the ROC segments.
        kv_cache: knows the requests' slots.
        start_token_id: what the decoder reads before an answer.
        device: the model's.
    """

    def __init__(
        self, builder: StepRocsBuilder, kv_cache: Seq2SeqKvCache, *, start_token_id: int, device: torch.device
    ) -> None:
        self._builder = builder
        self._kv_cache = kv_cache
        self._start_token_id = start_token_id
        self._device = device

    def build(self, works: Sequence[ScheduledWork]) -> Seq2SeqBatch:
        """The passes for a step's work, in any order; each request has its slot, and its ROCs are resident."""
        shares = [share for share in map(self._share, works) if share.num_tokens > 0]
        for share in shares:
            self._kv_cache.touch(share.slot, num_answer=share.stop, num_prompt=share.active.num_prompt_tokens)
        unread = [share for share in shares if share.start == 0]
        groups = list(_equally_long(shares))
        ordered = [share for group in groups for share in group]
        sampled = [(row, share.active) for row, share in enumerate(ordered) if share.work.is_sampling]
        return Seq2SeqBatch(
            encoders=tuple(self._encoder_work(group) for group in _filled(unread)),
            decoders=tuple(self._decoder_work(group) for group in groups),
            logit_rows=tuple(row for row, _ in sampled),
            sampling=tuple(active for _, active in sampled),
        )

    def _share(self, work: ScheduledWork) -> _Share:
        active = work.active
        assert active.kv_handle is not None, f"{active.request_id} runs without a place in the KV cache"
        # Of the answer's line, the prompt's last token is position 0.
        start = active.num_computed_tokens - (active.num_prompt_tokens - 1)
        return _Share(
            work=work,
            slot=self._kv_cache.slot_of(active.kv_handle),
            start=max(0, start),
            stop=max(0, start + work.num_tokens),
        )

    def _encoder_work(self, shares: Sequence[_Share]) -> EncoderWork:
        prompts = [share.active.request.prompt_token_ids for share in shares]
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        plans = [
            (slice(row * longest, row * longest + len(prompt)), None, share.active.request.plan.reading)
            for row, (prompt, share) in enumerate(zip(prompts, shares, strict=True))
        ]
        return EncoderWork(
            token_ids_EL=self._tensor(padded),
            lengths=tuple(map(len, prompts)),
            slots=tuple(share.slot for share in shares),
            rocs=self._builder.build(decode_plans=[], chunk_plans=plans),
        )

    def _decoder_work(self, shares: Sequence[_Share]) -> DecoderWork:
        num_tokens = shares[0].num_tokens
        answers = [[self._start_token_id, *share.active.completion.token_ids] for share in shares]
        plans = [share.active.request.plan.writing for share in shares]
        if num_tokens == 1:
            acting = [plan for plan in plans if not plan.is_base_only]
            rocs = self._builder.build(decode_plans=acting, chunk_plans=[])
        else:
            # The model makes logits of all tokens here.
            rows = [slice(row * num_tokens, (row + 1) * num_tokens) for row in range(len(shares))]
            chunks = list(zip(rows, rows, plans, strict=True))
            rocs = self._builder.build(decode_plans=[], chunk_plans=chunks)
        return DecoderWork(
            token_ids_Bn=self._tensor(
                [answer[share.start : share.stop] for answer, share in zip(answers, shares, strict=True)]
            ),
            positions=tuple(share.start for share in shares),
            prompt_lengths=tuple(share.active.num_prompt_tokens for share in shares),
            slots=tuple(share.slot for share in shares),
            rocs=rocs,
        )

    def _tensor(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._device)


def _filled(shares: Sequence[_Share]) -> Iterator[list[_Share]]:
    """Groups of prompts of similar length, longest first."""
    group: list[_Share] = []
    for share in sorted(shares, key=lambda share: -share.active.num_prompt_tokens):
        if group and share.active.num_prompt_tokens < _MIN_FILLING * group[0].active.num_prompt_tokens:
            yield group
            group = []
        group.append(share)
    if group:
        yield group


def _equally_long(shares: Sequence[_Share]) -> Iterator[list[_Share]]:
    """Groups of answers that go on by equally many tokens; more than one only where an answer is read again."""
    for num_tokens in sorted({share.num_tokens for share in shares}):
        group = [share for share in shares if share.num_tokens == num_tokens]
        # Rows without ROCs last: the others' decode plans are those of the first rows.
        yield sorted(group, key=lambda share: decode_order(share.active.request.plan.writing))
