"""A request inside the engine: what was asked, where it stands, and what it tells its caller.

    WAITING -> PREFILL -> DECODE -> FINISHED
       | ^        |         |          ^
       | +--------+---------+          |           (preemption: everything is read again later)
       +----------+---------+----------+           (abort or failure, from any state)
                            |          |
                        EXPLAINING ----+           (only where it was asked which ROCs act)

Every accepted request ends with exactly one terminal event: `Finished` or `Failed`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto

from hilora.routing_plan import RoutingPlan
from services.worker.engine.kv.kv_handle import KvHandle
from services.worker.engine.output.completion import Completion
from services.worker.engine.output.detokenizer import TokenDecoder
from services.worker.engine.output.event_stream import EventStream
from services.worker.engine.output.events import EventSink
from services.worker.engine.sampling.request_sampler import GrammarMatcher, RequestSampler
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.fairness import Flow, flow_of
from services.worker.lora.pool.residency import ResidencyTicket

MAX_PRIORITY = 100
"""Priorities lie between its negative and it: the range bounds how long age takes to make up for priority."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What a caller asks of the engine."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    plan: RoutingPlan = field(default_factory=RoutingPlan)
    priority: int = 0
    """Lower runs first, and may take the place of a request that is less urgent."""
    grammar: GrammarMatcher | None = None
    """What the answer must look like; compiled, and this request's alone."""
    num_read_tokens: int | None = None
    """Leading tokens of the prompt that a plan of two phases reads; None: all but its last, whose logits give the
    answer's first. A caller that sends an answer with its prompt, to have it judged, says where the answer begins."""
    explains_gating: bool = False
    """Whether its end tells which ROCs acted: once the answer is there, prompt and answer are read again for that."""


class RequestState(Enum):
    """Where a request stands."""

    WAITING = auto()
    """Queued for a place, or for its ROCs."""
    PREFILL = auto()
    """Has its place in the KV cache; part of what is known is still to be read."""
    DECODE = auto()
    """Has its place; one token a step."""
    EXPLAINING = auto()
    """Its answer is complete, and it has no place any more; its ROCs stay until it is known which of them acted."""
    FINISHED = auto()
    """Holds nothing; its terminal event was sent."""


_TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: frozenset({RequestState.PREFILL, RequestState.FINISHED}),
    RequestState.PREFILL: frozenset({RequestState.DECODE, RequestState.WAITING, RequestState.FINISHED}),
    RequestState.DECODE: frozenset({RequestState.WAITING, RequestState.EXPLAINING, RequestState.FINISHED}),
    RequestState.EXPLAINING: frozenset({RequestState.FINISHED}),
    RequestState.FINISHED: frozenset(),
}


@dataclass(kw_only=True, slots=True, eq=False)
class ActiveRequest:
    """A request from its acceptance to its terminal event. Touched by the engine's thread only, but for `stream`."""

    request: EngineRequest
    stream: EventStream
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
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the cache when it first ran."""
    admitted_at: float | None = None
    """When it first ran."""
    first_token_at: float | None = None
    num_preemptions: int = 0
    is_shielded: bool = False
    """Whether it may not be preempted any more: next time it gets room for all that it may come to."""
    arrival_idx: int = 0
    """Its place in the order of arrival."""
    flow: Flow = field(init=False)
    """What it competes as."""
    num_read_tokens: int = field(init=False)
    """Leading tokens that the plan's reading phase computes; 0 where it has one phase only."""

    def __post_init__(self) -> None:
        self.flow = flow_of(self.request.plan)
        num_read = self.request.num_read_tokens
        num_read = self.num_prompt_tokens - 1 if num_read is None else num_read
        self.num_read_tokens = num_read if self.request.plan.has_phases else 0

    @property
    def request_id(self) -> str:
        """The caller's id."""
        return self.request.request_id

    @property
    def priority(self) -> int:
        """The caller's; lower is more urgent."""
        return self.request.priority

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
        """Tokens that are known but not in the cache: what is still to be read, or the last sampled token."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def num_shared_tokens(self) -> int:
        """Leading known tokens that the prefix cache may share: of a plan of two phases, those that it reads.

        What is written under it depends on where its answer began, which no other request's tokens tell.
        """
        return self.num_read_tokens if self.request.plan.has_phases else self.num_tokens

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether what the model thinks of the prompt itself is still to be told."""
        return self.request.sampling.prompt_logprobs is not None and not self.completion.token_ids

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


def activated(
    request: EngineRequest,
    sink: EventSink,
    *,
    decoder: TokenDecoder,
    eos_token_ids: frozenset[int],
    max_model_len: int,
) -> ActiveRequest:
    """An accepted request, at its beginning.

    Args:
        request: what was asked.
        sink: where its events go.
        decoder: the model's tokenizer.
        eos_token_ids: tokens that end an answer.
        max_model_len: prompt and answer together never hold more tokens.
    """
    return ActiveRequest(
        request=request,
        stream=EventStream(sink),
        sampler=RequestSampler(
            request.sampling,
            prompt_token_ids=request.prompt_token_ids,
            eos_token_ids=eos_token_ids,
            grammar=request.grammar,
        ),
        completion=Completion(
            sampling=request.sampling,
            prompt_token_ids=request.prompt_token_ids,
            decoder=decoder,
            eos_token_ids=eos_token_ids,
            max_model_len=max_model_len,
        ),
    )
