"""Questions to the base alone: what a layer is given at a prompt's last token.

They are read one after another, a chunk between two steps, so that requests go on meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from hilora.errors import HiloraError, InvalidInput, QueueFull, Unavailable
from hilora.routing_plan import RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.execution.device_health import DeviceHealth, device_lost
from services.worker.engine.execution.failures import as_failure
from services.worker.engine.execution.input_pass import InputPass
from services.worker.engine.execution.model_runner import ModelRunner
from services.worker.engine.execution.runner import Runner, listening_runner
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.engine.scheduling.request_checks import check_request
from services.worker.models.loader import LoadedModel


@dataclass(kw_only=True, eq=False, slots=True)
class _Probe:
    token_ids: tuple[int, ...]
    module_path: str
    answer: Future[torch.Tensor]
    reading: InputPass | None = None


class Probes:
    """The queue of such questions.

    Args:
        runner: the model that is asked.
        config: limits.
        health: of the device; told of every error.
        loaded: the base model.
        check_open: raises if the engine takes nothing more. Called with this queue's lock held.
        on_ask: called when `advance` has something to do.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        health: DeviceHealth,
        loaded: LoadedModel,
        check_open: Callable[[], None],
        *,
        on_ask: Callable[[], None],
    ) -> None:
        self._runner = listening_runner(runner) if config.enable_lora else None
        self._config = config
        self._health = health
        self._vocab_size = loaded.vocab_size
        self._check_open = check_open
        self._on_ask = on_ask
        self._lock = threading.Lock()
        self._queue: deque[_Probe] = deque()
        self._is_closed = False

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Layers that can be listened to, in the model's order. Raises InvalidInput (`probe_unsupported`)."""
        return self._maker().module_paths

    def ask(self, token_ids: Sequence[int], *, module_path: str) -> Future[torch.Tensor]:
        """What a layer is given at a prompt's last token when the base reads it alone: `[D]`, in main memory. From any
        thread; cancelling the answer ends the reading.

        Raises:
            InvalidInput: `probe_unsupported`, or what `check_request` finds.
            QueueFull: too many questions wait.
            Unavailable: `worker_draining`, `engine_stuck`, `device_lost`.
        """
        self._maker()
        probe = _Probe(token_ids=tuple(token_ids), module_path=module_path, answer=Future())
        as_request = EngineRequest(
            request_id="probe",
            prompt_token_ids=probe.token_ids,
            sampling=SamplingParams(max_tokens=1),
            plan=RoutingPlan(),
        )
        check_request(as_request, config=self._config, vocab_size=self._vocab_size)
        with self._lock:
            self._check_open()
            if self._is_closed:
                raise _closed()
            if len(self._queue) >= self._config.max_waiting:
                raise QueueFull(f"{len(self._queue)} prompts wait to be read.")
            self._queue.append(probe)
        self._on_ask()
        return probe.answer

    def _maker(self) -> ModelRunner:
        if self._runner is None:
            raise InvalidInput(
                "This worker cannot ask its base about a prompt: the model has an encoder, or several processes share "
                "it, or it serves no adapters.",
                code="probe_unsupported",
                remedy="Use a strategy that decides before the prompt is read, like 'hilora'.",
                place="plan.preparation",
            )
        return self._runner

    def advance(self) -> bool:
        """Read one chunk of the oldest question; False if there is none. For the engine's thread."""
        probe = self._first()
        if probe is None:
            return False
        try:
            if probe.reading is None:
                probe.reading = self._maker().input_pass(probe.token_ids, module_path=probe.module_path)
            probe.reading.advance(self._config.max_num_batched_tokens)
            heard_D = probe.reading.result() if probe.reading.is_done else None
        except Exception as error:  # whatever the model, a kernel or the allocator raises
            failure = device_lost() if self._health.note(error) else as_failure(error)
            if self._take(probe):
                _fail(probe, failure)
            return True
        if heard_D is not None and self._take(probe) and probe.answer.set_running_or_notify_cancel():
            probe.answer.set_result(heard_D)
        return True

    def close(self) -> None:
        """Take no more questions, and fail those that wait."""
        with self._lock:
            self._is_closed = True
        self.fail_all(_closed())

    def fail_all(self, error: HiloraError) -> None:
        """Answer every question with an error. From any thread."""
        with self._lock:
            waiting = list(self._queue)
            self._queue.clear()
        for probe in waiting:
            _fail(probe, error)

    def _first(self) -> _Probe | None:
        with self._lock:
            while self._queue and self._queue[0].answer.cancelled():
                self._queue.popleft()
            return self._queue[0] if self._queue else None

    def _take(self, probe: _Probe) -> bool:
        """Whether the question was still in the queue, which it has left now: who took it answers it."""
        with self._lock:
            if probe not in self._queue:
                return False
            self._queue.remove(probe)
            return True


def _fail(probe: _Probe, error: HiloraError) -> None:
    if probe.answer.set_running_or_notify_cancel():
        probe.answer.set_exception(error)


def _closed() -> Unavailable:
    return Unavailable("This worker is shutting down.", code="worker_draining", remedy="Use another worker.")
