"""A request inside the engine: what was asked, where it stands, and what it tells its caller.

    WAITING -> PREFILL -> DECODE -> FINISHED
       |          |                    ^
       +----------+--------------------+        (abort or failure, from any state)

Every accepted request ends with exactly one terminal event: `Finished` or `Failed`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto

from hilora.routing_plan import RoutingPlan
from services.worker.engine.completion import Completion
from services.worker.engine.events import EventSink
from services.worker.engine.kv_handle import KvHandle
from services.worker.engine.request_sampler import GrammarMatcher, RequestSampler
from services.worker.engine.sampling_params import SamplingParams
from services.worker.lora.residency import ResidencyTicket


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What a caller asks of the engine."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    plan: RoutingPlan = field(default_factory=RoutingPlan)
    grammar: GrammarMatcher | None = None
    """What the answer must look like; compiled, and this request's alone."""


class RequestState(Enum):
    """Where a request stands."""

    WAITING = auto()
    """Queued for a slot, or for its ROCs."""
    PREFILL = auto()
    """Holds a slot; part of its prompt is still to be read."""
    DECODE = auto()
    """Holds a slot; one token a step."""
    FINISHED = auto()
    """Holds nothing; its terminal event was sent."""


_TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: frozenset({RequestState.PREFILL, RequestState.FINISHED}),
    RequestState.PREFILL: frozenset({RequestState.DECODE, RequestState.FINISHED}),
    RequestState.DECODE: frozenset({RequestState.FINISHED}),
    RequestState.FINISHED: frozenset(),
}


@dataclass(kw_only=True, slots=True, eq=False)
class ActiveRequest:
    """A request from its acceptance to its terminal event. Touched by the engine's thread only."""

    request: EngineRequest
    sink: EventSink
    sampler: RequestSampler
    completion: Completion
    submitted_at: float = field(default_factory=time.monotonic)
    state: RequestState = RequestState.WAITING
    ticket: ResidencyTicket | None = None
    """Its claim on ROCs; None while none was made."""
    kv_handle: KvHandle | None = None
    """Its place in the KV cache while it runs."""
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache."""
    first_token_at: float | None = None

    @property
    def request_id(self) -> str:
        """The caller's id."""
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt plus completion so far."""
        return self.num_prompt_tokens + len(self.completion.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that are known but not in the cache: the rest of the prompt, or the last sampled token."""
        return self.num_tokens - self.num_computed_tokens

    def tokens_between(self, start: int, stop: int) -> tuple[int, ...]:
        """Token ids of positions `start` to `stop` (exclusive), prompt and completion in one count."""
        prompt = self.request.prompt_token_ids
        if stop <= len(prompt):
            return prompt[start:stop]
        tail = self.completion.token_ids[max(0, start - len(prompt)) : stop - len(prompt)]
        return (*prompt[start:], *tail)

    def advance(self, state: RequestState) -> None:
        """Move to the next state; AssertionError on a transition that the machine does not have."""
        assert state in _TRANSITIONS[self.state], f"{self.request_id}: {self.state.name} -> {state.name}"
        self.state = state
