"""An engine over a tiny model, its requests, and what came back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hilora.adapter import RocBasis
from hilora.errors import HiloraError
from hilora.routing_plan import GateParameters, GateScope, RocBudget, RocScore, RoutingPlan
from services.worker.engine.config import EngineConfig
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Failed, Finished, TextDelta
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.models.loader import LoadedModel
from services.worker.ports import GateSource
from tests.builders.components import InMemoryComponentSource


@dataclass
class Recorder:
    """A sink that keeps what it gets."""

    events: list[EngineEvent] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.done.set()

    @property
    def num_terminal(self) -> int:
        return sum(isinstance(event, Finished | Failed) for event in self.events)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def token_ids(self) -> list[int]:
        return [token for event in self.events if isinstance(event, TextDelta) for token in event.token_ids]

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def error(self) -> HiloraError:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last.error


def make_engine(
    loaded: LoadedModel,
    source: InMemoryComponentSource | None = None,
    *,
    gate_source: GateSource | None = None,
    on_health: Callable[[bool], None] = lambda _: None,
    **config: Any,
) -> Engine:
    """An engine that is not started: tests drive it with `run_step`."""
    settings = {"max_num_seqs": 12, "max_model_len": 96, "max_num_batched_tokens": 64, "roc_pool_bytes": 4 << 20}
    return Engine(
        loaded=loaded,
        source=source or InMemoryComponentSource(),
        config=EngineConfig(**{**settings, **config}),
        gate_source=gate_source,
        on_health=on_health,
    )


def make_plan(
    *budgets: tuple[str, int, int, float],
    scope: GateScope = GateScope.PER_ADAPTER,
    score: RocScore = RocScore.ACTIVATION,
    eta: float = 1.0,
) -> RoutingPlan:
    """A plan from `(adapter_id, lora_rank, num_rocs, weight)` each."""
    return RoutingPlan(
        budgets=tuple(
            RocBudget(adapter_id=adapter_id, adapter_name=adapter_id, lora_rank=rank, num_rocs=num_rocs, weight=weight)
            for adapter_id, rank, num_rocs, weight in budgets
        ),
        gate=GateParameters(scope=scope, score=score, basis=RocBasis.TRAINED, eta=eta),
    )


def submit(
    engine: Engine,
    request_id: str,
    prompt: list[int],
    *,
    plan: RoutingPlan | None = None,
    priority: int = 0,
    explains_gating: bool = False,
    **sampling: Any,
) -> Recorder:
    """Submit and return the recorder of its events; greedy and unending unless told otherwise."""
    recorder = Recorder()
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **sampling})
    request = EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=params,
        plan=plan or RoutingPlan(),
        priority=priority,
        explains_gating=explains_gating,
    )
    engine.submit(request, recorder)
    return recorder


def run_until_done(engine: Engine, *recorders: Recorder, max_steps: int = 500) -> None:
    """Turn the loop until every request has ended; loader threads get their time."""
    for _ in range(max_steps):
        if all(recorder.done.is_set() for recorder in recorders):
            return
        if not engine.run_step():
            time.sleep(0.002)
    raise AssertionError("requests did not end")
