"""The engine: one thread that runs steps for as long as there are requests.

`submit`, `abort`, `stats` and `stop` may be called from any thread. Every accepted request ends with exactly one
terminal event, whatever happens: an exception in one request's work ends that request alone, and an exception in the
batched forward pass makes the step run request by request, so that only the culprit fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from hilora.adapter import RocBasis
from hilora.errors import Conflict, GenerationFailed, HiloraError, InvalidInput, QueueFull, Unavailable
from services.worker.engine.completion import Completion
from services.worker.engine.config import EngineConfig
from services.worker.engine.events import EngineEvent, EventSink, Failed, Finished, FinishReason, Started
from services.worker.engine.model_runner import ModelRunner
from services.worker.engine.prefix_cache import prefix_key_of
from services.worker.engine.request import ActiveRequest, EngineRequest, RequestState
from services.worker.engine.sampler import RequestSampler, SampledToken, sample
from services.worker.engine.scheduler import ScheduledWork, Scheduler
from services.worker.engine.stats import EngineCounters, EngineStats
from services.worker.lora.pool_entries import RocKey
from services.worker.lora.pool_stats import FreedBytes
from services.worker.lora.residency import Residency, TicketState
from services.worker.models.loader import LoadedModel
from services.worker.ports import ComponentSource

_log = logging.getLogger(__name__)

_IDLE_WAIT_SECONDS = 0.5
"""Upper bound of one sleep; work wakes the thread at once."""


class Engine:
    """Continuous batching over one model.

    Args:
        loaded: the base model; the engine takes it over.
        source: where components come from that are not on the device.
        config: limits.
    """

    def __init__(self, *, loaded: LoadedModel, source: ComponentSource, config: EngineConfig) -> None:
        self._config = config
        self._loaded = loaded
        self._runner = ModelRunner(loaded, config)
        self._scheduler = Scheduler(config, admit=self._admit)
        self._wake = threading.Event()
        self._residency = Residency(
            pool=self._runner.pool,
            source=source,
            num_threads=config.num_loader_threads,
            on_progress=self._wake.set,
            fetch_timeout_seconds=config.component_timeout_seconds,
            max_placing_seconds=config.max_placing_seconds,
        )
        self._lock = threading.Lock()
        # Guarded by the lock: what other threads hand to the engine's own.
        self._inbox: deque[ActiveRequest] = deque()
        self._aborts: deque[ActiveRequest] = deque()
        self._in_flight: dict[str, ActiveRequest] = {}
        self._is_draining = False
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._is_idle = threading.Condition(self._lock)
        self._counters = EngineCounters()

    def submit(self, request: EngineRequest, sink: EventSink) -> None:
        """Accept a request. Its events go to `sink`, on the engine's thread, terminal event last.

        Raises:
            InvalidInput: `empty_prompt`, `prompt_too_long`, `invalid_token_id`, `lora_disabled`; no event is sent then.
            InvalidSamplingParams: a stop token or a biased token that the model does not have.
            Conflict: `duplicate_request_id`.
            QueueFull: too many requests wait.
            Unavailable: `worker_draining`.
        """
        self._check_prompt(request)
        active = ActiveRequest(
            request=request,
            sink=sink,
            sampler=RequestSampler(
                request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                eos_token_ids=self._loaded.eos_token_ids,
                grammar=request.grammar,
            ),
            completion=Completion(
                sampling=request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                decoder=self._loaded.tokenizer,
                eos_token_ids=self._loaded.eos_token_ids,
                max_model_len=self._config.max_model_len,
            ),
        )
        with self._lock:
            if self._is_draining:
                raise Unavailable("This worker is shutting down.", code="worker_draining", remedy="Use another worker.")
            if request.request_id in self._in_flight:
                raise Conflict(
                    f"A request {request.request_id} is in flight already.",
                    code="duplicate_request_id",
                    remedy="Choose an id of its own for each request.",
                    place="request_id",
                )
            if len(self._inbox) + self._scheduler.num_waiting >= self._config.max_waiting:
                raise QueueFull(
                    f"{self._config.max_waiting} requests are waiting already.",
                    remedy="Try again shortly, or add workers.",
                )
            self._in_flight[request.request_id] = active
            self._inbox.append(active)
        self._wake.set()

    def abort(self, request_id: str) -> bool:
        """End a request at the next step; False if it is not in flight."""
        with self._lock:
            active = self._in_flight.get(request_id)
            if active is None:
                return False
            # The request itself, not its id: the id may belong to another one by the time this is read.
            self._aborts.append(active)
        self._wake.set()
        return True

    def retire(self, adapter_id: str) -> FreedBytes:
        """Free an adapter's device memory, at once or when its last request ends."""
        return self._runner.pool.retire(adapter_id)

    def readmit(self, adapter_id: str) -> None:
        """A retired adapter may be kept again."""
        self._runner.pool.readmit(adapter_id)

    def pin(self, adapter_id: str, basis: RocBasis) -> None:
        """Bring an adapter to the device and keep it there until it is retired. Returns at once."""
        self._residency.pin(RocKey(adapter_id, basis))

    def stats(self) -> EngineStats:
        """The engine's load now."""
        pool = self._runner.pool
        with self._lock:
            num_inbox = len(self._inbox)
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + num_inbox,
            max_num_seqs=self._config.max_num_seqs,
            max_model_len=self._config.max_model_len,
            kv_cache_usage=self._runner.kv_cache.usage,
            resident_adapter_ids=tuple(dict.fromkeys(key.adapter_id for key in pool.resident_keys())),
            roc_pool_used_bytes=pool.used_bytes,
            roc_pool_capacity_bytes=pool.capacity_bytes,
            is_draining=self._is_draining,
            counters=replace(self._counters),
        )

    def start(self) -> None:
        """Start the engine's thread."""
        assert self._thread is None, "an engine starts once"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, *, drain_seconds: float) -> None:
        """Refuse new requests, let those in flight finish for at most `drain_seconds`, abort the rest, end the thread.
        Blocks; safe to call twice.
        """
        with self._lock:
            self._is_draining = True
            if self._thread is not None:
                self._is_idle.wait_for(lambda: not self._in_flight, timeout=drain_seconds)
            self._is_stopping = True
            self._aborts.extend(self._in_flight.values())
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        else:
            self.run_step()
        self._residency.shutdown()

    def run_step(self) -> bool:
        """One turn of the loop: commands, residency, one forward pass. False if there was nothing to compute."""
        self._take_commands()
        self._residency.poll()
        for active in self._scheduler.waiting():
            if active.ticket is not None and active.ticket.state is TicketState.FAILED:
                assert active.ticket.error is not None
                self._end(active, Failed(error=active.ticket.error))
        step = self._scheduler.schedule()
        for active in step.admitted:
            self._guarded(active, lambda active=active: self._announce(active))
        works = [work for work in (*step.decodes, *step.chunks) if work.active.state is not RequestState.FINISHED]
        if not works:
            return False
        self._execute(works)
        return True

    def check_integrity(self) -> None:
        """AssertionError unless slots, references and requests agree. For the engine's thread, or while it rests."""
        self._runner.kv_cache.check_integrity()
        requests = list(self._scheduler.requests())
        self._residency.check_integrity([active.ticket for active in requests if active.ticket is not None])
        running = {active.request_id for active in requests if active.kv_handle is not None}
        assert self._runner.kv_cache.owners == running, "the KV cache and running requests disagree"
        queued = {active.request_id for active in self._inbox}
        assert self._in_flight.keys() == {active.request_id for active in requests} | queued, "a request is lost"

    def _check_prompt(self, request: EngineRequest) -> None:
        num_tokens = len(request.prompt_token_ids)
        if num_tokens == 0:
            raise InvalidInput(
                "The prompt has no tokens.", code="empty_prompt", remedy="Send some text.", place="prompt"
            )
        if num_tokens >= self._config.max_model_len:
            raise InvalidInput(
                f"The prompt has {num_tokens} tokens; with at least one token of answer, at most "
                f"{self._config.max_model_len - 1} fit this model's context.",
                code="prompt_too_long",
                remedy="Shorten the prompt.",
                place="prompt",
            )
        if not 0 <= min(request.prompt_token_ids) <= max(request.prompt_token_ids) < self._loaded.vocab_size:
            raise InvalidInput(
                f"A token id is outside 0..{self._loaded.vocab_size - 1}.",
                code="invalid_token_id",
                remedy="Use the ids of the base model's own tokenizer.",
                place="prompt",
            )
        request.sampling.check_token_ids(self._loaded.vocab_size)
        if not self._config.enable_lora and not request.plan.is_base_only:
            raise InvalidInput(
                "This engine serves its base model alone.",
                code="lora_disabled",
                remedy="Send the request without adapters, or to a worker that serves them.",
                place="model",
            )

    def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                has_worked = self.run_step()
            except (
                Exception
            ) as error:  # a fault of the loop itself: no request may hang, and the next ones get a chance
                _log.exception("the step loop failed; all requests in flight end")
                for active in list(self._scheduler.requests()):
                    self._end(active, Failed(error=_as_failure(error)))
                has_worked = False
            with self._lock:
                if self._is_stopping and not self._in_flight:
                    return
            if not has_worked:
                self._wake.wait(_IDLE_WAIT_SECONDS)

    def _take_commands(self) -> None:
        with self._lock:
            arrived = list(self._inbox)
            self._inbox.clear()
            aborted = list(self._aborts)
            self._aborts.clear()
            for active in arrived:
                self._scheduler.add(active)
        for active in arrived:
            self._guarded(active, lambda active=active: self._claim(active))
        for active in aborted:
            self._end(active, self._finished(active, FinishReason.ABORT))

    def _admit(self, active: ActiveRequest) -> bool:
        """Room for all that a request may come to, so that it never has to be taken back."""
        cache = self._runner.kv_cache
        most = min(active.num_prompt_tokens + active.request.sampling.max_tokens, self._config.max_model_len)
        if not cache.can_admit(most):
            return False
        plan = active.request.plan
        prefix_key = prefix_key_of(self._loaded.base_revision, plan)
        tokens = active.tokens_between(0, active.num_tokens)
        active.kv_handle = cache.allocate(active.request_id, tokens, prefix_key=prefix_key)
        assert cache.reserve(active.kv_handle, most), "admission promised more than there is"
        active.num_computed_tokens = active.kv_handle.num_cached_tokens
        return True

    def _claim(self, active: ActiveRequest) -> None:
        active.ticket = self._residency.open(active.request.plan)

    def _announce(self, active: ActiveRequest) -> None:
        self._counters.num_prompt_tokens += active.num_prompt_tokens
        active.sink(Started(num_prompt_tokens=active.num_prompt_tokens))

    def _execute(self, works: Sequence[ScheduledWork]) -> None:
        try:
            chosen = self._forward(works)
        except Exception as error:  # anything the model, a kernel or the allocator raises
            if len(works) == 1:
                _log.warning("request %s failed", works[0].active.request_id, exc_info=error)
                self._end(works[0].active, Failed(error=_as_failure(error)))
                return
            _log.warning("a batch of %d failed (%s); running it one by one", len(works), error)
            for work in works:
                self._execute([work])
            return
        for work in works:
            active = work.active
            active.num_computed_tokens += work.num_tokens
            if (token := chosen.get(active.request_id)) is not None:
                self._guarded(active, lambda active=active, token=token: self._advance(active, token))

    def _forward(self, works: Sequence[ScheduledWork]) -> dict[str, SampledToken | HiloraError]:
        batch = self._runner.build_batch(list(works))
        logits_SV = self._runner.execute(batch)
        tokens = sample(logits_SV, [active.sampler for active in batch.sampling])
        return {active.request_id: token for active, token in zip(batch.sampling, tokens, strict=True)}

    def _advance(self, active: ActiveRequest, token: SampledToken | HiloraError) -> None:
        """Give a request its next token, or its end."""
        if isinstance(token, HiloraError):
            raise token
        if active.state is RequestState.PREFILL:
            active.first_token_at = time.monotonic()
            active.advance(RequestState.DECODE)
        self._counters.num_generation_tokens += 1
        update = active.completion.append(token)
        if update.delta is not None:
            active.sink(update.delta)
        if update.finish_reason is not None:
            self._end(active, self._finished(active, update.finish_reason, update.stop_reason))

    def _guarded(self, active: ActiveRequest, work: Callable[[], None]) -> None:
        """Do one request's own work; whatever it raises ends that request alone."""
        if active.state is RequestState.FINISHED:
            return
        try:
            work()
        except Exception as error:  # whatever it is, it is this request's own
            if not isinstance(error, HiloraError):
                _log.warning("request %s failed", active.request_id, exc_info=error)
            self._end(active, Failed(error=_as_failure(error)))

    def _finished(
        self, active: ActiveRequest, reason: FinishReason, stop_reason: str | int | None = None
    ) -> Finished:
        budgets = active.request.plan.budgets if active.kv_handle is not None else ()
        first = active.first_token_at
        return Finished(
            finish_reason=reason,
            stop_reason=stop_reason,
            num_prompt_tokens=active.num_prompt_tokens,
            num_completion_tokens=len(active.completion.token_ids),
            budgets_used=tuple(budget for budget in budgets if budget.num_rocs > 0),
            ttft_seconds=0.0 if first is None else first - active.submitted_at,
            e2e_latency_seconds=time.monotonic() - active.submitted_at,
        )

    def _end(self, active: ActiveRequest, event: EngineEvent) -> None:
        """Free everything a request holds, then send its terminal event. Only the first call counts."""
        if active.state is RequestState.FINISHED:
            return
        active.advance(RequestState.FINISHED)
        self._scheduler.remove(active)
        try:
            has_answered = isinstance(event, Finished) and event.finish_reason is not FinishReason.ABORT
            self._free(active, is_reusable=has_answered)
        except Exception:  # a broken device cannot even be cleared; its callers must not wait for that
            _log.exception("freeing what request %s held failed", active.request_id)
        self._counters.count_end(event)
        # Before the event: whoever hears it may use the id again at once.
        with self._is_idle:
            self._in_flight.pop(active.request_id, None)
            self._is_idle.notify_all()
        try:
            active.sink(event)
        except Exception:  # the caller is gone; there is nobody left to tell
            _log.warning("the sink of request %s refused its last event", active.request_id, exc_info=True)

    def _free(self, active: ActiveRequest, *, is_reusable: bool) -> None:
        if active.ticket is not None:
            self._residency.close(active.ticket)
        if active.kv_handle is not None:
            handle, active.kv_handle = active.kv_handle, None
            self._runner.kv_cache.free(
                handle,
                token_ids=active.tokens_between(0, active.num_computed_tokens),
                num_written=active.num_computed_tokens,
                is_reusable=is_reusable,
            )


def _as_failure(error: Exception) -> HiloraError:
    if isinstance(error, HiloraError):
        return error
    return GenerationFailed(
        f"The engine could not finish this request: {type(error).__name__}.",
        remedy="Other requests were not affected; send it again, and see the worker's log if it fails again.",
    )
