"""Computes one step, and finds out whose fault it is when that fails.

Shapes: S rows of logits, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hilora.errors import HiloraError
from services.worker.engine.execution.device_health import DeviceHealth, device_lost
from services.worker.engine.execution.failures import as_failure
from services.worker.engine.execution.runner import Runner, RunnerBatch
from services.worker.engine.sampling.sampler import SampledToken, sample
from services.worker.engine.scheduling.request import ActiveRequest
from services.worker.engine.scheduling.scheduler import ScheduledWork

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkResult:
    """What came of one request's share of a step."""

    work: ScheduledWork
    token: SampledToken | None = None
    """The next token, if the step reached the last known one."""
    error: HiloraError | None = None
    """What ends the request; nothing of its share counts then."""


class StepExecutor:
    """Runs steps through a model and samples from them.

    Args:
        runner: the model.
        health: of the model's device; told of every error.
    """

    def __init__(self, runner: Runner, health: DeviceHealth) -> None:
        self._runner = runner
        self._health = health

    def execute(self, works: Sequence[ScheduledWork]) -> list[WorkResult]:
        """One result for each work, in any order.

        An exception in the batched forward pass, whatever raised it, makes the step run request by request: running it
        again writes the same values to the same places, and only the culprit fails. If the device is lost, all do.
        """
        try:
            batch = self._runner.build_batch(list(works))
            logits_SV = self._runner.execute(batch)
            sampled_SV = batch.sampled_logits(logits_SV)
        except Exception as error:  # anything the model, a kernel or the allocator raises
            if self._health.note(error):
                return [WorkResult(work=work, error=device_lost()) for work in works]
            if len(works) == 1:
                _log.warning("request %s failed", works[0].active.request_id, exc_info=error)
                return [WorkResult(work=works[0], error=as_failure(error))]
            _log.warning("a batch of %d failed (%s); running it one by one", len(works), repr(error))
        else:
            outcomes = self._outcomes(batch, logits_SV, sampled_SV)
            return [_result(work, outcomes.get(work.active.request_id)) for work in works]
        # Not in the handler: until that is left, the error holds the failed pass's frames, and these all its tensors.
        return [result for work in works for result in self.execute([work])]

    def _outcomes(
        self, batch: RunnerBatch, logits_SV: torch.Tensor, sampled_SV: torch.Tensor
    ) -> dict[str, SampledToken | HiloraError]:
        tokens = self._sample(sampled_SV, batch.sampling)
        outcomes = {active.request_id: token for active, token in zip(batch.sampling, tokens, strict=True)}
        for prompt in batch.prompt_logits:
            try:
                prompt.active.completion.add_prompt_logits(logits_SV[prompt.rows], prompt.start)
            except Exception as error:  # whatever it is, it is this request's own
                outcomes[prompt.active.request_id] = self._failure(error)
        return outcomes

    def _sample(self, logits_SV: torch.Tensor, requests: Sequence[ActiveRequest]) -> list[SampledToken | HiloraError]:
        try:
            return sample(logits_SV, [active.sampler for active in requests])
        except Exception as error:  # a request's own rules broke in a way that its sampler did not foresee
            # The first call that waits for the device hears of what went wrong there.
            if self._health.note(error):
                return [device_lost() for _ in requests]
            _log.warning("sampling for %d requests failed; trying one by one", len(requests), exc_info=error)
        return [self._sample_alone(logits_SV, row, active) for row, active in enumerate(requests)]

    def _sample_alone(self, logits_SV: torch.Tensor, row: int, active: ActiveRequest) -> SampledToken | HiloraError:
        if active.sampler.num_tokens != len(active.completion.token_ids):
            # Its token was chosen and noted, and then lost with those of the others.
            return as_failure(RuntimeError("a token was lost"))
        try:
            return sample(logits_SV[row : row + 1], [active.sampler])[0]
        except Exception as error:  # now it is certain whose fault it is
            return self._failure(error)

    def _failure(self, error: Exception) -> HiloraError:
        return device_lost() if self._health.note(error) else as_failure(error)


def _result(work: ScheduledWork, outcome: SampledToken | HiloraError | None) -> WorkResult:
    if isinstance(outcome, HiloraError):
        return WorkResult(work=work, error=outcome)
    return WorkResult(work=work, token=outcome)
