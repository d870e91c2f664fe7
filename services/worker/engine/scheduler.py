"""Which requests a step advances, and by how many tokens: a pure policy, no tensors.

Every decoding request advances by one token, always. What is left of `max_num_batched_tokens` goes to prompts, oldest
first: prompts already begun, then waiting requests that have a slot to take and whose ROCs are resident. A waiting
request whose ROCs are still on their way is passed over, so a cold adapter delays only the request that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hilora.errors import QueueFull
from services.worker.engine.config import EngineConfig
from services.worker.engine.request import ActiveRequest, RequestState


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
        admit: gives a waiting request its place in the KV cache; False if there is none now.
    """

    def __init__(self, config: EngineConfig, *, admit: Callable[[ActiveRequest], bool] = lambda _: True) -> None:
        self._config = config
        self._admit = admit
        # Dicts keep arrival order and remove in constant time.
        self._waiting: dict[str, ActiveRequest] = {}
        self._running: dict[str, ActiveRequest] = {}

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    def requests(self) -> Iterator[ActiveRequest]:
        """All requests, running ones first."""
        yield from tuple(self._running.values())
        yield from tuple(self._waiting.values())

    def waiting(self) -> Iterator[ActiveRequest]:
        """The queue, oldest first."""
        yield from tuple(self._waiting.values())

    def add(self, active: ActiveRequest) -> None:
        """Queue a request.

        Raises:
            QueueFull: `max_waiting` requests wait already.
        """
        if len(self._waiting) >= self._config.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests are waiting already.",
                retry_after_seconds=1.0,
                remedy="Try again shortly, or add workers.",
            )
        self._waiting[active.request_id] = active

    def remove(self, active: ActiveRequest) -> None:
        """Forget a request, wherever it stands."""
        self._waiting.pop(active.request_id, None)
        self._running.pop(active.request_id, None)

    def schedule(self) -> ScheduledStep:
        """Choose the next step's work. Admitted requests move to the running set and to PREFILL."""
        budget = self._config.max_num_batched_tokens
        decodes = tuple(
            ScheduledWork(active=active, num_tokens=1)
            for active in self._running.values()
            if active.state is RequestState.DECODE
        )
        budget -= len(decodes)
        chunks: list[ScheduledWork] = []
        for active in self._running.values():
            if active.state is RequestState.PREFILL and budget > 0:
                chunks.append(_chunk(active, budget))
                budget -= chunks[-1].num_tokens
        admitted: list[ActiveRequest] = []
        for active in self.waiting():
            if budget <= 0 or len(self._running) >= self._config.max_num_seqs:
                break
            if active.ticket is None or not active.ticket.is_ready:
                continue
            if not self._admit(active):
                break
            del self._waiting[active.request_id]
            self._running[active.request_id] = active
            active.advance(RequestState.PREFILL)
            admitted.append(active)
            chunks.append(_chunk(active, budget))
            budget -= chunks[-1].num_tokens
        return ScheduledStep(admitted=tuple(admitted), decodes=decodes, chunks=tuple(chunks))


def _chunk(active: ActiveRequest, budget: int) -> ScheduledWork:
    return ScheduledWork(active=active, num_tokens=min(budget, active.num_uncomputed_tokens))
