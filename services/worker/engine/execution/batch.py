"""The tensors of one step.

Shapes: T packed tokens, S rows of logits, V vocabulary.

Rows of logits are those of the requests that sample, and, where a request asks what the model thinks of its prompt,
those of the prompt's tokens.

A chunk that holds the turn of a plan of two phases has rows of both.

Row order: decode tokens whose plan has ROCs, decode tokens without, then the prefill chunks one after another. So each
kind of row is one slice, and rows without ROCs need no work beyond the base model's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.kv.kv_cache import KvCache, KvHandle
from services.worker.engine.scheduling.request import ActiveRequest, RequestState
from services.worker.engine.scheduling.scheduler import ScheduledWork
from services.worker.lora.gating.batch_plan import StepRocs, StepRocsBuilder, decode_order
from services.worker.models.attention import AttentionStep


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptLogits:
    """Which rows of a step's logits tell of a prompt."""

    active: ActiveRequest
    rows: slice
    start: int
    """Position of the first row's token; the row predicts the one after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What the runner executes."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    logit_rows_S: torch.Tensor
    """Tokens whose logits are computed."""
    sampling: tuple[ActiveRequest, ...]
    """The requests whose next token is to be chosen."""
    sampled: tuple[int, ...]
    """Their rows among the logits, in ascending order."""
    prompt_logits: tuple[PromptLogits, ...]
    attention: AttentionStep
    rocs: StepRocs | None

    def sampled_logits(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """The rows to sample from."""
        return logits_SV if len(self.sampled) == logits_SV.shape[0] else logits_SV[list(self.sampled)]


def build_batch(
    works: Sequence[ScheduledWork], builder: StepRocsBuilder, kv_cache: KvCache, *, device: torch.device
) -> StepBatch:
    """The tensors for a step's work.

    Args:
        works: decode and prefill work in any order; each request has its place in the KV cache.
        builder: makes the ROC segments.
        kv_cache: makes the attention step.
        device: the model's.
    """
    decodes = [work for work in works if work.active.state is RequestState.DECODE]
    decodes.sort(key=lambda work: decode_order(work.active.request.plan.writing))
    chunks = [work for work in works if work.active.state is not RequestState.DECODE]
    token_ids: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    sampling: list[ActiveRequest] = []
    sampled: list[int] = []
    prompt_logits: list[PromptLogits] = []
    prefills: list[tuple[KvHandle, int, int, int]] = []
    chunk_plans = []
    for work in (*decodes, *chunks):
        active = work.active
        row, start = len(token_ids), active.num_computed_tokens
        stop = start + work.num_tokens
        token_ids.extend(active.tokens_between(start, stop))
        positions.extend(range(start, stop))
        first_logit = len(logit_rows)
        # The prompt's last token predicts the answer, which is sampled and told by itself.
        num_prompt_logits = min(stop, active.num_prompt_tokens - 1) - start if active.wants_prompt_logits else 0
        if num_prompt_logits > 0:
            logit_rows.extend(range(row, row + num_prompt_logits))
            rows = slice(first_logit, first_logit + num_prompt_logits)
            prompt_logits.append(PromptLogits(active=active, rows=rows, start=start))
        if work.is_sampling:
            sampled.append(len(logit_rows))
            logit_rows.append(len(token_ids) - 1)
            sampling.append(active)
        if active.state is not RequestState.DECODE:
            prefills.append((_handle_of(active), row, start, work.num_tokens))
            chunk_plans.extend(_phases(work, row, first_logit, logit_rows))
    plans = [work.active.request.plan.writing for work in decodes]
    return StepBatch(
        token_ids_T=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions_T=torch.tensor(positions, dtype=torch.int64, device=device),
        logit_rows_S=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        sampling=tuple(sampling),
        sampled=tuple(sampled),
        prompt_logits=tuple(prompt_logits),
        attention=kv_cache.attention_step(
            [(_handle_of(work.active), work.active.num_computed_tokens) for work in decodes], prefills, device
        ),
        rocs=builder.build(decode_plans=[plan for plan in plans if not plan.is_base_only], chunk_plans=chunk_plans),
    )


def _phases(
    work: ScheduledWork, row: int, first_logit: int, logit_rows: Sequence[int]
) -> Iterator[tuple[slice, slice | None, RoutingPlan]]:
    """A chunk's rows, its rows among the logits and its plan, apart for each phase of the plan that it belongs to.

    Args:
        work: the chunk.
        row: its first row.
        first_logit: its first row among the logits.
        logit_rows: the rows of all logits so far, those of the chunk last.
    """
    active = work.active
    end = row + work.num_tokens
    turn = min(max(row + active.num_read_tokens - active.num_computed_tokens, row), end)
    logit_turn = bisect_left(logit_rows, turn, lo=first_logit)
    parts = (
        (slice(row, turn), slice(first_logit, logit_turn), active.request.plan.reading),
        (slice(turn, end), slice(logit_turn, len(logit_rows)), active.request.plan.writing),
    )
    for rows, logits_of, plan in parts:
        if rows.stop > rows.start:
            yield rows, logits_of if logits_of.stop > logits_of.start else None, plan


def _handle_of(active: ActiveRequest) -> KvHandle:
    assert active.kv_handle is not None, f"{active.request_id} runs without a place in the KV cache"
    return active.kv_handle
