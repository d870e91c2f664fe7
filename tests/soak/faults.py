"""What goes wrong in a soak: sources, kernels and clients that fail at random."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hilora.adapter import DecomposedAdapter, RocBasis
from hilora.errors import RegistryUnavailable
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Failed, Finished, Started, TextDelta

HANG_SECONDS = 1.5
"""Longer than the engine of a soak waits for components."""


@dataclass
class FaultyClient:
    """A sink that checks the order of what it hears, and may fail."""

    raises_on: type[EngineEvent] | None = None
    submitted_at: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    num_started: int = 0
    num_tokens: int = 0
    terminals: list[Finished | Failed] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __call__(self, event: EngineEvent) -> None:
        if self.terminals:
            self.violations.append(f"{type(event).__name__} after the end")
        if isinstance(event, Started):
            self.num_started += 1
            if self.num_started > 1:
                self.violations.append("started twice")
        elif isinstance(event, TextDelta):
            self.num_tokens += len(event.token_ids)
            if not self.num_started:
                self.violations.append("text before the start")
        else:
            self._end(event)
        if self.raises_on is not None and isinstance(event, self.raises_on):
            raise ConnectionError("the client is gone")

    def _end(self, event: Finished | Failed) -> None:
        self.terminals.append(event)
        has_heard_all = self.raises_on is None and isinstance(event, Finished) and event.finish_reason != "abort"
        if has_heard_all and event.num_completion_tokens != self.num_tokens:
            self.violations.append("tokens were lost")
        self.done.set()


class FaultySource:
    """Adapters by id that come late, or not at all."""

    def __init__(self, adapters: dict[str, DecomposedAdapter], rng: random.Random) -> None:
        self._adapters = adapters
        self._rng = rng
        self.is_faulty = True

    def fetch(self, adapter_id: str, basis: RocBasis) -> DecomposedAdapter:
        chance = self._rng.random() if self.is_faulty else 1.0
        if chance < 0.002:
            time.sleep(HANG_SECONDS)
        elif chance < 0.3:
            time.sleep(0.02 * self._rng.random())
        if 0.3 < chance < 0.33:
            raise RegistryUnavailable("away")
        if 0.33 < chance < 0.35:
            raise OSError("the disk is gone")
        return self._adapters[adapter_id]


def make_poisonous(adapter: DecomposedAdapter) -> DecomposedAdapter:
    """Components that are not finite."""
    for rocs in adapter.modules.values():
        rocs.b_RO[0] = float("nan")
    return adapter


@dataclass
class FaultyKernels:
    """Makes an engine's forward passes and writes of components fail at random, and its books be checked."""

    engine: Engine
    rng: random.Random
    is_faulty: bool = True
    num_faults: int = 0
    violations: list[str] = field(default_factory=list)

    def install(self, *, steps_per_check: int) -> None:
        """Wrap what the engine calls. The books are checked on the engine's own thread, between two steps."""
        runner, run_step = self.engine._runner, self.engine.run_step
        runner.execute = self._failing(runner.execute, 0.01)
        runner.pool.write = self._failing(runner.pool.write, 0.01)
        num_steps = 0

        def checked_step() -> bool:
            nonlocal num_steps
            has_worked = run_step()
            num_steps += 1
            if num_steps % steps_per_check == 0:
                try:
                    self.engine.check_integrity()
                except AssertionError as error:
                    self.violations.append(str(error))
            return has_worked

        self.engine.run_step = checked_step

    def _failing(self, work: Callable, chance: float) -> Callable:
        def failing(*args):
            if self.is_faulty and self.rng.random() < chance:
                self.num_faults += 1
                raise torch.OutOfMemoryError("a kernel failed")
            return work(*args)

        return failing
