"""The engine: one thread that runs steps for as long as there are requests.

`submit`, `abort`, `stats` and `stop` may be called from any thread. Every accepted request ends with exactly one
terminal event, whatever happens: an exception in one request's work ends that request alone, one in the batched forward
pass only the culprit, and a step that never returns does not keep those waiting that have not begun. After the loss of
the device all requests end, and no new ones are taken: another process has to take this one's place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from hilora.adapter import RocBasis
from hilora.errors import Conflict, HiloraError, Unavailable
from hilora.routing_plan import RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.device_health import DeviceHealth, device_lost, probe_of
from services.worker.engine.execution.runner import build_runner, gating_pass_maker
from services.worker.engine.execution.step_executor import StepExecutor
from services.worker.engine.explanations import Explanations
from services.worker.engine.output.events import EventSink, Failed, Finished
from services.worker.engine.probes import Probes
from services.worker.engine.request_lifecycle import RequestLifecycle
from services.worker.engine.scheduling.kv_places import KvPlaces
from services.worker.engine.scheduling.queue_limits import QueueLimits
from services.worker.engine.scheduling.request import ActiveRequest, EngineRequest, RequestState, activated
from services.worker.engine.scheduling.request_checks import check_request
from services.worker.engine.scheduling.scheduler import Scheduler
from services.worker.engine.scheduling.service_rate import ServiceRate
from services.worker.engine.stats import EngineCounters, EngineStats
from services.worker.engine.watchdog import Watchdog
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.pool_stats import FreedBytes
from services.worker.lora.pool.residency import Residency
from services.worker.models.loader import LoadedModel
from services.worker.ports import ComponentSource, GateSource

_log = logging.getLogger(__name__)

_IDLE_WAIT_SECONDS = 0.5
"""Upper bound of one sleep; work wakes the thread at once."""


class Engine:
    """Continuous batching over one model.

    Args:
        loaded: the base model; the engine takes it over.
        source: where components come from that are not on the device.
        config: limits.
        gate_source: where learned gates come from; None: there are none.
        on_health: told False when a step does not return, and True when it has; told False, and nothing after it, when
            the device is lost. On a thread of the engine's.
    """

    def __init__(
        self,
        *,
        loaded: LoadedModel,
        source: ComponentSource,
        config: EngineConfig,
        gate_source: GateSource | None = None,
        on_health: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._loaded = loaded
        self._on_health = on_health
        self._runner = build_runner(loaded, config, gate_source=gate_source)
        self._health = DeviceHealth(probe_of(loaded.device))
        self._executor = StepExecutor(self._runner, self._health)
        places = KvPlaces(self._runner.kv_cache, base_revision=loaded.base_revision, max_model_len=config.max_model_len)
        self._scheduler = Scheduler(config, places=places)
        self._wake = threading.Event()
        self._residency = Residency(
            pool=self._runner.pool,
            source=source,
            num_threads=config.num_loader_threads,
            on_progress=self._wake.set,
            fetch_timeout_seconds=config.component_timeout_seconds,
            max_placing_seconds=config.max_placing_seconds,
        )
        self._counters = EngineCounters()
        self._requests = RequestLifecycle(
            scheduler=self._scheduler,
            residency=self._residency,
            places=places,
            counters=self._counters,
            health=self._health,
            explain=self._explain,
            on_end=self._forget,
        )
        self._pass_maker = gating_pass_maker(self._runner)
        self._explanations = Explanations(
            self._pass_maker, self._requests, max_chunk_tokens=config.max_num_batched_tokens
        )
        self.probes = Probes(self._runner, config, self._health, loaded, self._check_open, on_ask=self._wake.set)
        self._rate = ServiceRate()
        self._limits = QueueLimits(config, self._rate)
        self._watchdog = Watchdog(
            max_step_seconds=config.max_step_seconds, on_stuck=self._give_up_waiting, on_recovery=self._recover
        )
        self._lock = threading.Lock()
        # Guarded by the lock: what other threads hand to the engine's own.
        self._inbox: deque[ActiveRequest] = deque()
        self._aborts: deque[ActiveRequest] = deque()
        self._in_flight: dict[str, ActiveRequest] = {}
        self._is_draining = False
        self._is_stopping = False
        self._is_out_of_service = False
        self._thread: threading.Thread | None = None
        self._is_idle = threading.Condition(self._lock)

    def submit(self, request: EngineRequest, sink: EventSink) -> None:
        """Accept a request. Its events go to `sink`, on a thread of the engine's, terminal event last.

        Blocks while a learned gate is fetched, if the plan has one that is not there; `load_gate` does so beforehand.

        Raises:
            InvalidInput: see `check_request` and `LearnedGates.load`; no event is sent then.
            InvalidSamplingParams: a stop token or a biased token that the model does not have.
            Conflict: `duplicate_request_id`.
            QueueFull: too many requests wait; `retry_after_seconds` follows from how fast they have been served.
            Unavailable: `worker_draining`, `engine_stuck`, `device_lost`.
        """
        check_request(
            request,
            config=self._config,
            vocab_size=self._loaded.vocab_size,
            has_encoder=self._loaded.is_encoder_decoder,
            can_explain=self._pass_maker is not None,
        )
        if self._health.is_lost:
            raise device_lost()
        active = activated(
            request,
            sink,
            decoder=self._loaded.tokenizer,
            eos_token_ids=self._loaded.eos_token_ids,
            max_model_len=self._config.max_model_len,
        )
        with self._health.watching():
            self._runner.gates.acquire(request.plan)
        try:
            self._enqueue(active)
        except HiloraError:
            self._runner.gates.release(request.plan)
            raise
        self._wake.set()

    def _enqueue(self, active: ActiveRequest) -> None:
        request = active.request
        with self._lock:
            self._check_open()
            if request.request_id in self._in_flight:
                raise Conflict(
                    f"A request {request.request_id} is in flight already.",
                    code="duplicate_request_id",
                    remedy="Choose an id of its own for each request.",
                    place="request_id",
                )
            num_waiting = self._scheduler.num_waiting + len(self._explanations)
            self._limits.check_room(len(self._inbox) + num_waiting)
            self._in_flight[request.request_id] = active
            self._inbox.append(active)

    def _check_open(self) -> None:
        if self._is_draining:
            raise Unavailable("This worker is shutting down.", code="worker_draining", remedy="Use another worker.")
        if self._health.is_lost:
            raise device_lost()
        if self._watchdog.is_stuck:
            raise _stuck()

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

    def load_gate(self, plan: RoutingPlan) -> None:
        """Bring a plan's learned gate to the device, if it has one. May block; see `LearnedGates.load`."""
        with self._health.watching():
            self._runner.gates.load(plan)

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
            roc_pool=pool.stats(),
            is_draining=self._is_draining,
            is_stuck=self._watchdog.is_stuck,
            is_device_lost=self._health.is_lost,
            counters=replace(self._counters),
        )

    def start(self) -> None:
        """Start the engine's thread, and the one that watches it."""
        assert self._thread is None, "an engine starts once"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._watchdog.start(self._thread)

    def stop(self, *, drain_seconds: float) -> None:
        """Refuse new requests, let those in flight finish for at most `drain_seconds`, abort the rest, end the thread.

        Blocks until the step of now is over; a step that is stuck is left alone, and its requests fail. Safe to call
        twice.
        """
        with self._lock:
            self._is_draining = True
            if self._thread is not None:
                self._is_idle.wait_for(lambda: not self._in_flight, timeout=drain_seconds)
            self._is_stopping = True
            self._aborts.extend(self._in_flight.values())
        self._wake.set()
        if self._thread is None:
            self.run_step()
        while self._thread is not None and self._thread.is_alive() and not self._watchdog.is_stuck:
            self._thread.join(_IDLE_WAIT_SECONDS)
        self._watchdog.stop()
        # Nobody, unless the step is stuck.
        self._abandon(list(self._in_flight.values()))
        self.probes.close()
        self._residency.shutdown()

    def run_step(self) -> bool:
        """One turn of the loop: commands, residency, one forward pass. False if there was nothing to do."""
        self._take_commands()
        if self._health.is_lost:
            self._go_out_of_service()
            return False
        self._residency.poll()
        if self._scheduler.num_waiting:
            self._end_hopeless()
        step = self._scheduler.schedule()
        self._counters.num_preemptions += len(step.preempted)
        for active in step.admitted:
            if active.admitted_at is None:
                self._rate.note()
            self._requests.begin(active)
        self._rate.observe(self._scheduler.num_waiting)
        for active, error in step.failed:
            _log.warning("request %s got no memory", active.request_id, exc_info=error)
            self._requests.fail(active, error)
        works = [work for work in (*step.decodes, *step.chunks) if work.active.state is not RequestState.FINISHED]
        if works:
            self._counters.num_steps += 1
            for result in self._executor.execute(works):
                self._requests.apply(result)
        has_read = self._explanations.advance() | self.probes.advance()
        if self._health.is_lost:
            self._go_out_of_service()
        # Whose requests all ended before they were computed has made room for others.
        return bool(works or step.admitted or step.failed or has_read)

    def check_integrity(self) -> None:
        """AssertionError unless memory, references and requests agree. For the engine's thread, or while it rests."""
        self._runner.kv_cache.check_integrity()
        self._scheduler.check_integrity()
        requests = [*self._scheduler.requests(), *self._explanations.requests()]
        self._residency.check_integrity([active.ticket for active in requests if active.ticket is not None])
        running = {active.request_id for active in requests if active.kv_handle is not None}
        assert self._runner.kv_cache.owners == running, "the KV cache and running requests disagree"
        assert len(running) == self._scheduler.num_running, "a request runs without memory, or waits with some"
        self._runner.gates.check_integrity([active.request.plan for active in self._in_flight.values()])
        queued = {active.request_id for active in self._inbox}
        assert self._in_flight.keys() == {active.request_id for active in requests} | queued, "a request is lost"

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._watchdog.begin_step()
            try:
                has_worked = self.run_step()
            except (
                BaseException
            ) as error:  # a fault of the loop itself: no request may hang, the next ones get a chance
                _log.exception("the step loop failed; all requests in flight end")
                self._end_all(error)
                has_worked = self._health.is_lost
            finally:
                self._watchdog.end_step()
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
            self._requests.claim(active)
        for active in aborted:
            self._requests.abort(active)

    def _end_hopeless(self) -> None:
        now, num_waiting = time.monotonic(), self._scheduler.num_waiting
        for active in self._scheduler.waiting():
            if (error := self._limits.verdict(active, num_waiting=num_waiting, now=now)) is not None:
                self._counters.num_queue_timeouts += error.code == "queue_timeout"
                self._requests.fail(active, error)

    def _end_all(self, error: BaseException) -> None:
        """End every request but those that the engine's thread has not seen yet."""
        with self._lock:
            unseen = set(self._inbox)
            seen = [active for active in self._in_flight.values() if active not in unseen]
        for active in seen:
            try:
                self._requests.fail(active, error)
            except Exception:  # a bug met while another one is handled; it must not keep the other requests
                _log.exception("request %s could not be ended in order", active.request_id)

    def _go_out_of_service(self) -> None:
        """The device is lost: end what is in flight, and say so once. `submit` takes no more."""
        self._end_all(device_lost())
        self.probes.fail_all(device_lost())
        if not self._is_out_of_service:
            self._is_out_of_service = True
            self._on_health(False)

    def _explain(self, active: ActiveRequest, finished: Finished) -> None:
        self._explanations.add(active, finished)

    def _forget(self, active: ActiveRequest) -> None:
        """A request holds nothing any more, but for its learned gate."""
        if active.admitted_at is None:
            self._rate.note()
        with self._is_idle:
            self._in_flight.pop(active.request_id, None)
            self._is_idle.notify_all()
        self._runner.gates.release(active.request.plan)

    def _give_up_waiting(self) -> None:
        """The step of now does not return: let those go elsewhere that have not begun. On the watchdog's thread."""
        with self._lock:
            # Who has begun, and perhaps gave way since, has told a part of its answer: nobody else can go on with it.
            waiting = [active for active in self._in_flight.values() if active.admitted_at is None]
        self._abandon(waiting)
        self.probes.fail_all(_stuck())
        self._on_health(False)

    def _recover(self) -> None:
        if not self._health.is_lost:
            self._on_health(True)

    def _abandon(self, requests: list[ActiveRequest]) -> None:
        """Tell requests' callers that they end; what they hold is freed by the engine's thread, if it ever returns."""
        for active in requests:
            try:
                active.stream.tell(Failed(error=_stuck()))
            except Exception:  # the caller is gone
                _log.warning("the sink of request %s refused its last event", active.request_id, exc_info=True)
        with self._lock:
            self._aborts.extend(requests)


def _stuck() -> Unavailable:
    return Unavailable(
        "A step of this worker's engine does not return.", code="engine_stuck", remedy="Use another worker."
    )
