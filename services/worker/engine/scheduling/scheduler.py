"""Which requests a step advances, and by how many tokens: a pure policy, no tensors.

Every decoding request advances by one token, always. What is left of the step's tokens goes to prompts: those already
begun, then waiting requests, in the order of `WaitingQueue`. So neither answers nor prompts ever starve, and no plan
keeps another one waiting.

Memory for keys and values is given hopefully, and taken back when it runs out, or when a more urgent request finds no
place: the least urgent, youngest request goes back to the queue and is read again later. That happens to a request a
bounded number of times; then it is shielded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from services.worker.engine.config import EngineConfig
from services.worker.engine.scheduling.fairness import FairShares
from services.worker.engine.scheduling.priorities import AgedPriorities, PriorityCounts, choose_victim
from services.worker.engine.scheduling.request import ActiveRequest, RequestState
from services.worker.engine.scheduling.waiting_queue import WaitingQueue

_DECODE_COST = 2.0
"""What a token of an answer counts in a flow's service, next to one of a prompt: it reads all weights for few rows."""
_MAX_PROMPT_LOGIT_TOKENS = 64
"""Tokens of one chunk whose logits are all kept: each takes a row as long as the vocabulary."""


class SequencePlaces(Protocol):
    """Memory for keys and values, as the scheduler sees it."""

    def admit(self, active: ActiveRequest) -> bool:
        """Give a waiting request room for its known tokens; False if there is none now."""
        ...

    def extend(self, active: ActiveRequest) -> bool:
        """Room for the one token that a decoding request computes next; False if memory is out."""
        ...

    def take_back(self, active: ActiveRequest) -> None:
        """Free what a running request holds."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledWork:
    """One request's share of a step."""

    active: ActiveRequest
    num_tokens: int

    @property
    def is_sampling(self) -> bool:
        """Whether the step reaches the request's last known token, so that a next one can be chosen."""
        return self.active.num_computed_tokens + self.num_tokens == self.active.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledStep:
    """What one step does."""

    admitted: tuple[ActiveRequest, ...] = ()
    """Requests that left the queue; each has its place in the KV cache."""
    preempted: tuple[ActiveRequest, ...] = ()
    """Requests that went back to it."""
    failed: tuple[tuple[ActiveRequest, Exception], ...] = ()
    """Requests whose memory could not be given though it should be there, and why. They stand where they stood."""
    decodes: tuple[ScheduledWork, ...] = ()
    chunks: tuple[ScheduledWork, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(work.num_tokens for work in (*self.decodes, *self.chunks))


class Scheduler:
    """The queue and the running set of one engine.

    Args:
        config: limits.
        places: memory for keys and values.
        clock: that of the requests' `submitted_at`.
    """

    def __init__(
        self, config: EngineConfig, *, places: SequencePlaces, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._places = places
        self._clock = clock
        self._shares = FairShares()
        self._waiting = WaitingQueue(self._shares)
        # A dict keeps the order of admission and removes in constant time.
        self._running: dict[str, ActiveRequest] = {}
        self._counts = PriorityCounts()
        self._num_arrived = 0

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have a place in the KV cache."""
        return len(self._running)

    def requests(self) -> Iterator[ActiveRequest]:
        """All requests, running ones first."""
        yield from tuple(self._running.values())
        yield from self._waiting

    def waiting(self) -> Iterator[ActiveRequest]:
        """The queue."""
        return iter(self._waiting)

    def add(self, active: ActiveRequest) -> None:
        """Queue a request."""
        active.arrival_idx = self._num_arrived
        self._num_arrived += 1
        active.is_shielded = self._config.max_preemptions == 0
        self._shares.join(active.flow)
        self._counts.add(active)
        self._waiting.add(active)

    def remove(self, active: ActiveRequest) -> None:
        """Forget a request, wherever it stands."""
        if self._waiting.remove(active) or self._running.pop(active.request_id, None) is not None:
            self._shares.leave(active.flow)
            self._counts.remove(active)

    def schedule(self) -> ScheduledStep:
        """Choose the next step's work. Admitted requests move to the running set and to PREFILL, preempted ones to the
        queue and to WAITING."""
        preempted: list[ActiveRequest] = []
        failed: list[tuple[ActiveRequest, Exception]] = []
        self._extend_decodes(preempted, failed)
        admitted: list[ActiveRequest] = []
        # What memory ran out for a moment ago is not given away again at once.
        if self._waiting and not preempted:
            self._admit(admitted, preempted, failed)
        decodes = tuple(
            ScheduledWork(active=active, num_tokens=1)
            for active in self._running.values()
            if active.state is RequestState.DECODE
        )
        for work in decodes:
            self._shares.charge(work.active.flow, _DECODE_COST)
        return ScheduledStep(
            admitted=tuple(admitted),
            preempted=tuple(preempted),
            failed=tuple(failed),
            decodes=decodes,
            chunks=self._chunks(len(decodes)),
        )

    def check_integrity(self) -> None:
        """AssertionError unless each request is in one place, in a state that fits it."""
        running, waiting = set(self._running), {active.request_id for active in self._waiting}
        assert not running & waiting, "a request runs and waits"
        for active in self._running.values():
            assert active.state in {RequestState.PREFILL, RequestState.DECODE}, f"{active.request_id} cannot run"
        for active in self._waiting:
            assert active.state is RequestState.WAITING, f"{active.request_id} cannot wait"
        self._shares.check_integrity()
        self._waiting.check_integrity()
        self._counts.check_integrity(tuple(self.requests()))

    def _extend_decodes(self, preempted: list[ActiveRequest], failed: list[tuple[ActiveRequest, Exception]]) -> None:
        for active in tuple(self._running.values()):
            try:
                while active.state is RequestState.DECODE and not self._places.extend(active):
                    # Itself, if nobody else can be asked to.
                    self._preempt(choose_victim(self._running.values(), self._priorities()) or active, preempted)
            except Exception as error:  # the allocator's, or the device's: this one's alone, as far as anybody knows
                failed.append((active, error))

    def _admit(
        self,
        admitted: list[ActiveRequest],
        preempted: list[ActiveRequest],
        failed: list[tuple[ActiveRequest, Exception]],
    ) -> None:
        priorities = self._priorities()
        is_full = len(self._running) >= self._config.max_num_seqs
        if is_full and not choose_victim(self._running.values(), priorities, for_priority=self._waiting.most_urgent):
            return
        while (active := self._waiting.first(priorities)) is not None:
            if active in preempted or self._prompt_budget(active, priorities) <= 0:
                return
            try:
                while len(self._running) >= self._config.max_num_seqs or not self._places.admit(active):
                    # Nobody overtakes a request that finds no place, or a large one would never find any.
                    victim = choose_victim(self._running.values(), priorities, for_priority=active.priority)
                    if victim is None:
                        return
                    self._preempt(victim, preempted)
            except Exception as error:
                failed.append((active, error))
                return
            self._waiting.remove(active)
            self._running[active.request_id] = active
            active.advance(RequestState.PREFILL)
            admitted.append(active)
            self._shares.charge(active.flow, active.num_uncomputed_tokens)

    def _prompt_budget(self, active: ActiveRequest, priorities: AgedPriorities) -> int:
        """Tokens of the step that are left for a waiting request, behind the prompts that go before it."""
        level = priorities.of(active)
        num_decodes = sum(one.state is RequestState.DECODE for one in self._running.values())
        num_ahead = sum(
            one.num_uncomputed_tokens
            for one in self._running.values()
            if one.state is RequestState.PREFILL and priorities.of(one) <= level
        )
        return self._chunk_budget(num_decodes) - num_ahead

    def _chunk_budget(self, num_decodes: int) -> int:
        """Tokens of a step for prompts. At least one: a step always has room for every running request."""
        budget = self._config.max_num_batched_tokens - num_decodes
        if num_decodes and (limit := self._config.max_prompt_tokens_beside_decodes) is not None:
            budget = min(budget, limit)
        return budget

    def _chunks(self, num_decodes: int) -> tuple[ScheduledWork, ...]:
        reading = [active for active in self._running.values() if active.state is RequestState.PREFILL]
        if len(reading) > 1:
            priorities = self._priorities()
            reading.sort(key=priorities.of)
        budget = self._chunk_budget(num_decodes)
        chunks: list[ScheduledWork] = []
        for active in reading:
            if budget <= 0:
                break
            num_tokens = min(budget, active.num_uncomputed_tokens)
            if active.wants_prompt_logits:
                num_tokens = min(num_tokens, _MAX_PROMPT_LOGIT_TOKENS)
            chunks.append(ScheduledWork(active=active, num_tokens=num_tokens))
            budget -= num_tokens
        return tuple(chunks)

    def _priorities(self) -> AgedPriorities:
        return AgedPriorities(
            most_urgent=self._counts.most_urgent,
            now=self._clock(),
            ageing_seconds=self._config.priority_ageing_seconds,
        )

    def _preempt(self, active: ActiveRequest, preempted: list[ActiveRequest]) -> None:
        self._places.take_back(active)
        del self._running[active.request_id]
        active.advance(RequestState.WAITING)
        active.num_preemptions += 1
        active.is_shielded = active.num_preemptions >= self._config.max_preemptions
        self._waiting.add(active)
        preempted.append(active)
