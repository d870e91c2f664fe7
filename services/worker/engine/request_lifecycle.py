"""What happens to one request: it begins to run, gets tokens, and ends, whatever its own fault or its caller's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from hilora.errors import HiloraError
from services.worker.engine.execution.device_health import DeviceHealth, device_lost
from services.worker.engine.execution.failures import as_failure, forget_frames
from services.worker.engine.execution.step_executor import WorkResult
from services.worker.engine.output.events import Failed, Finished, FinishReason, Started
from services.worker.engine.sampling.sampler import SampledToken
from services.worker.engine.scheduling.kv_places import KvPlaces
from services.worker.engine.scheduling.request import ActiveRequest, RequestState
from services.worker.engine.scheduling.scheduler import Scheduler
from services.worker.engine.stats import EngineCounters
from services.worker.lora.pool.residency import Residency

_log = logging.getLogger(__name__)


class RequestLifecycle:
    """Moves requests along and frees what they hold. For the engine's thread.

    Args:
        scheduler: where requests stand.
        residency: where they hold ROCs.
        places: where they hold keys and values.
        counters: what is counted.
        health: of the device; told of every error.
        explain: takes over a request whose answer is complete, and its end, which is to tell which ROCs acted.
        on_end: called when a request holds nothing any more, before its caller hears of its end.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        residency: Residency,
        places: KvPlaces,
        counters: EngineCounters,
        health: DeviceHealth,
        explain: Callable[[ActiveRequest, Finished], None],
        on_end: Callable[[ActiveRequest], None],
    ) -> None:
        self._scheduler = scheduler
        self._residency = residency
        self._places = places
        self._counters = counters
        self._health = health
        self._explain = explain
        self._on_end = on_end

    def claim(self, active: ActiveRequest) -> None:
        """Ask for the ROCs of an accepted request's plan."""
        with _Guard(self, active):
            active.ticket = self._residency.open(active.request.plan)

    def begin(self, active: ActiveRequest) -> None:
        """The request has its place, for the first time or again."""
        if active.admitted_at is not None:
            return
        active.admitted_at = time.monotonic()
        active.num_cached_tokens = active.num_computed_tokens
        self._counters.num_prompt_tokens += active.num_prompt_tokens
        self._counters.num_cached_tokens += active.num_cached_tokens
        self._counters.queue_seconds += active.admitted_at - active.submitted_at
        with _Guard(self, active):
            active.stream.tell(Started(num_prompt_tokens=active.num_prompt_tokens))

    def apply(self, result: WorkResult) -> None:
        """A step has computed the request's share."""
        active = result.work.active
        if active.state is RequestState.FINISHED:
            return
        if result.error is not None:
            self.end(active, Failed(error=result.error))
            return
        active.num_computed_tokens += result.work.num_tokens
        if result.token is not None:
            with _Guard(self, active):
                self._add(active, result.token)

    def abort(self, active: ActiveRequest) -> None:
        """End a request early."""
        self.end(active, self._finished(active, FinishReason.ABORT))

    def fail(self, active: ActiveRequest, error: BaseException) -> None:
        """End a request with an error; its caller is told what `as_failure` makes of it."""
        self.end(active, Failed(error=device_lost() if self._health.note(error) else as_failure(error)))

    def end(self, active: ActiveRequest, event: Finished | Failed) -> None:
        """Free everything a request holds, then send its terminal event. Only the first call counts."""
        if active.state is RequestState.FINISHED:
            return
        if isinstance(event, Failed):
            forget_frames(event.error)
        has_answered = isinstance(event, Finished) and event.finish_reason is not FinishReason.ABORT
        active.advance(RequestState.FINISHED)
        # What was told in the engine's place, when it did not answer, is what happened.
        self._counters.count_end(active.stream.terminal or event)
        for let_go in (
            lambda: self._scheduler.remove(active),
            lambda: None if active.ticket is None else self._residency.close(active.ticket),
            lambda: self._places.free(active, is_reusable=has_answered),
            # Before the event: whoever hears it may use the id again at once.
            lambda: self._on_end(active),
        ):
            try:
                let_go()
            except Exception as error:  # a broken device cannot even be cleared; callers must not wait for that
                _log.exception("freeing what request %s held failed", active.request_id)
                self._health.note(error)
        try:
            active.stream.tell(event)
        except BaseException:  # the caller is gone; there is nobody left to tell
            _log.warning("the sink of request %s refused its last event", active.request_id, exc_info=True)

    def _add(self, active: ActiveRequest, token: SampledToken) -> None:
        if active.state is RequestState.PREFILL:
            active.advance(RequestState.DECODE)
        if active.first_token_at is None:
            active.first_token_at = time.monotonic()
        self._counters.num_generation_tokens += 1
        update = active.completion.append(token)
        if update.delta is not None:
            active.stream.tell(update.delta)
        if update.finish_reason is not None:
            self._complete(active, self._finished(active, update.finish_reason, update.stop_reason))

    def _complete(self, active: ActiveRequest, finished: Finished) -> None:
        """The answer is there."""
        if not active.request.explains_gating:
            self.end(active, finished)
        elif active.request.plan.is_base_only:
            self.end(active, replace(finished, num_gated_tokens=active.num_tokens - 1))
        else:
            # Its ROCs are needed once more, its place is not.
            active.advance(RequestState.EXPLAINING)
            self._scheduler.remove(active)
            self._places.free(active, is_reusable=True)
            self._explain(active, finished)

    def _finished(self, active: ActiveRequest, reason: FinishReason, stop_reason: str | int | None = None) -> Finished:
        has_run = active.admitted_at is not None
        first = active.first_token_at
        return Finished(
            finish_reason=reason,
            stop_reason=stop_reason,
            num_prompt_tokens=active.num_prompt_tokens,
            num_completion_tokens=len(active.completion.token_ids),
            num_cached_tokens=active.num_cached_tokens,
            budgets_used=tuple(one for one in active.request.plan.budgets if has_run and one.num_rocs > 0),
            ttft_seconds=0.0 if first is None else first - active.submitted_at,
            e2e_latency_seconds=time.monotonic() - active.submitted_at,
        )


class _Guard:
    """One request's own work: whatever it raises ends that request alone."""

    def __init__(self, lifecycle: RequestLifecycle, active: ActiveRequest) -> None:
        self._lifecycle = lifecycle
        self._active = active

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> bool:
        # Libraries that are not written in Python panic with what is no `Exception`. An interrupt is meant for all.
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            return False
        if not isinstance(error, HiloraError):
            _log.warning("request %s failed", self._active.request_id, exc_info=error)
        self._lifecycle.fail(self._active, error)
        return True
