"""Requests as the scheduler sees them, and memory for them, without tensors."""

from __future__ import annotations

import itertools

from hilora.routing_plan import RocBudget, RoutingPlan
from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.output.completion import Completion
from services.worker.engine.output.event_stream import EventStream
from services.worker.engine.sampling.sampler import RequestSampler
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import ActiveRequest, EngineRequest, RequestState
from services.worker.engine.scheduling.scheduler import ScheduledStep
from services.worker.lora.pool.residency import ResidencyTicket, TicketState
from tests.builders.models import ByteTokenizer

_ids = itertools.count()


def make_active(
    num_tokens: int = 4,
    *,
    adapter: str | None = None,
    priority: int = 0,
    submitted_at: float = 0.0,
    is_resident: bool = True,
    **sampling,
) -> ActiveRequest:
    """A request with a prompt of so many tokens; its answer goes on until a test ends it."""
    prompt, params = (5,) * num_tokens, SamplingParams(**{"max_tokens": 64, **sampling})
    budgets = () if adapter is None else (RocBudget(adapter_id=adapter, adapter_name=adapter, lora_rank=4, num_rocs=2),)
    return ActiveRequest(
        request=EngineRequest(
            request_id=f"r{next(_ids)}",
            prompt_token_ids=prompt,
            sampling=params,
            plan=RoutingPlan(budgets=budgets),
            priority=priority,
        ),
        stream=EventStream(lambda event: None),
        sampler=RequestSampler(params),
        completion=Completion(
            sampling=params,
            prompt_token_ids=prompt,
            decoder=ByteTokenizer(),
            eos_token_ids=frozenset({1}),
            max_model_len=96,
        ),
        submitted_at=submitted_at,
        ticket=ResidencyTicket(keys=(), state=TicketState.READY if is_resident else TicketState.FETCHING),
    )


class CountedPlaces:
    """Memory for so many tokens in all; a request that may not be preempted any more gets all it may need at once."""

    def __init__(self, num_tokens: int = 1_000_000) -> None:
        self.num_tokens = num_tokens
        self.held: dict[str, int] = {}

    @property
    def num_free(self) -> int:
        return self.num_tokens - sum(self.held.values())

    def admit(self, active: ActiveRequest) -> bool:
        needed = active.num_tokens
        if active.is_shielded:
            needed = active.num_prompt_tokens + active.request.sampling.max_tokens
        if needed > self.num_free:
            return False
        self.held[active.request_id] = needed
        active.kv_handle = KvHandle(owner=active.request_id)
        return True

    def extend(self, active: ActiveRequest) -> bool:
        more = max(0, active.num_tokens - self.held[active.request_id])
        if more > self.num_free:
            return False
        self.held[active.request_id] += more
        return True

    def take_back(self, active: ActiveRequest) -> None:
        del self.held[active.request_id]
        active.kv_handle = None
        active.num_computed_tokens = 0


def play(step: ScheduledStep) -> None:
    """What the engine does with a step, without a model."""
    for work in (*step.decodes, *step.chunks):
        is_sampling = work.is_sampling
        work.active.num_computed_tokens += work.num_tokens
        if is_sampling:
            if work.active.state is RequestState.PREFILL:
                work.active.advance(RequestState.DECODE)
            work.active.completion.token_ids.append(7)
