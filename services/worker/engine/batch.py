"""The tensors of one step.

Shapes: T packed tokens, S rows to sample from.

Row order: decode tokens whose plan has ROCs, decode tokens without, then the prefill chunks one after another. So each
kind of row is one slice, and rows without ROCs need no work beyond the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.worker.engine.kv_cache import KvCache, KvHandle
from services.worker.engine.request import ActiveRequest, RequestState
from services.worker.engine.scheduler import ScheduledWork
from services.worker.lora.batch_plan import StepRocs, StepRocsBuilder, decode_order
from services.worker.models.attention import AttentionStep


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What the runner executes."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    logit_rows_S: torch.Tensor
    """Rows whose next token is to be chosen."""
    sampling: tuple[ActiveRequest, ...]
    """The requests of those rows, in order."""
    attention: AttentionStep
    rocs: StepRocs | None


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
    decodes.sort(key=lambda work: decode_order(work.active.request.plan))
    chunks = [work for work in works if work.active.state is not RequestState.DECODE]
    token_ids: list[int] = []
    positions: list[int] = []
    logit_rows: list[int] = []
    sampling: list[ActiveRequest] = []
    prefills: list[tuple[KvHandle, int, int, int]] = []
    chunk_plans = []
    for work in (*decodes, *chunks):
        active = work.active
        row, start = len(token_ids), active.num_computed_tokens
        stop = start + work.num_tokens
        token_ids.extend(active.tokens_between(start, stop))
        positions.extend(range(start, stop))
        logit_row = None
        if work.is_sampling:
            logit_row = len(logit_rows)
            logit_rows.append(len(token_ids) - 1)
            sampling.append(active)
        if active.state is not RequestState.DECODE:
            prefills.append((_handle_of(active), row, start, work.num_tokens))
            logit_rows_of = None if logit_row is None else slice(logit_row, logit_row + 1)
            chunk_plans.append((slice(row, row + work.num_tokens), logit_rows_of, active.request.plan))
    plans = [work.active.request.plan for work in decodes]
    return StepBatch(
        token_ids_T=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions_T=torch.tensor(positions, dtype=torch.int64, device=device),
        logit_rows_S=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        sampling=tuple(sampling),
        attention=kv_cache.attention_step(
            [(_handle_of(work.active), work.active.num_computed_tokens) for work in decodes], prefills, device
        ),
        rocs=builder.build(decode_plans=[plan for plan in plans if not plan.is_base_only], chunk_plans=chunk_plans),
    )


def _handle_of(active: ActiveRequest) -> KvHandle:
    assert active.kv_handle is not None, f"{active.request_id} runs without a place in the KV cache"
    return active.kv_handle
