"""Reads a finished request's tokens once more, to see which components act at them.

Shapes: T tokens of one chunk, S rows of logits.

The pass repeats what the steps of the request computed: the same tokens at the same positions with the same plan, in
chunks as a prompt is read, but with keys and values of its own. So it disturbs nobody's memory, and no request that is
not explained pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.kv.kv_cache import KvCache
from services.worker.lora.gating.batch_plan import StepRocsBuilder, StepWork
from services.worker.lora.gating.gating_counts import GatingCounter, ModuleGating, summed
from services.worker.models.attention import AttentionStep


class Forward(Protocol):
    """A forward pass of the model."""

    def __call__(
        self,
        *,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        logit_rows_S: torch.Tensor,
        attention: AttentionStep,
        rocs: StepWork | None,
    ) -> torch.Tensor:
        """Logits `[S, V]`."""
        ...


class GatingPass:
    """One request's second reading, chunk by chunk.

    Args:
        token_ids: what the model has read of the request, at least one: prompt and answer without its last token.
        num_prompt_tokens: of these; from the prompt's last token on, each one's logits were computed.
        num_read_tokens: of these, those that the plan reads where it has two phases.
        plan: the request's, not base-only. Its adapters stay on the device until the pass is over.
        module_paths: of the model's layers, by module index.
        make_counter: for a plan of one phase that is not base-only.
        builder: makes the steps' segments.
        kv_cache: a cache that is the pass's alone, with room for the tokens.
        forward: the model.
        device: the model's.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        num_prompt_tokens: int,
        num_read_tokens: int,
        plan: RoutingPlan,
        module_paths: list[str],
        make_counter: Callable[[RoutingPlan], GatingCounter],
        builder: StepRocsBuilder,
        kv_cache: KvCache,
        forward: Forward,
        device: torch.device,
    ) -> None:
        self._token_ids = list(token_ids)
        self._first_logit = num_prompt_tokens - 1
        self._plan = plan
        self._module_paths = module_paths
        self._turn = num_read_tokens
        phases = (plan.reading, plan.writing) if plan.has_phases else (plan,)
        # Of a phase with no components there is nothing to count.
        self._counters = {one.digest: make_counter(one) for one in phases if not one.is_base_only}
        self._builder = builder
        self._kv_cache = kv_cache
        self._forward = forward
        self._device = device
        self._handle = kv_cache.allocate("explained", self._token_ids, prefix_key=None)
        self._num_read = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that are read in all."""
        return len(self._token_ids)

    @property
    def is_done(self) -> bool:
        """Whether all are read."""
        return self._num_read == len(self._token_ids)

    @torch.inference_mode()
    def advance(self, max_tokens: int) -> None:
        """Read the next tokens, at most so many. Between the engine's steps, on its thread."""
        start = self._num_read
        stop = min(start + max_tokens, len(self._token_ids))
        is_reading = self._plan.has_phases and start < self._turn
        if is_reading:
            stop = min(stop, self._turn)
        plan = self._plan.reading if is_reading else self._plan.writing
        first_row = max(self._first_logit - start, 0)
        logit_rows = range(min(first_row, stop - start), stop - start)
        logits_of = slice(0, len(logit_rows)) if logit_rows else None
        step = self._builder.build(decode_plans=[], chunk_plans=[(slice(0, stop - start), logits_of, plan)])
        self._forward(
            token_ids_T=self._tensor(self._token_ids[start:stop]),
            positions_T=self._tensor(range(start, stop)),
            logit_rows_S=self._tensor(logit_rows),
            attention=self._kv_cache.attention_step([], [(self._handle, 0, start, stop - start)], self._device),
            rocs=None if step is None else self._counters[plan.digest].counting(step),
        )
        self._num_read = stop

    def result(self) -> tuple[ModuleGating, ...]:
        """What acted, once all is read."""
        assert self.is_done, "half of the tokens say nothing"
        return summed(self._plan, [counter.result(self._module_paths) for counter in self._counters.values()])

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)
