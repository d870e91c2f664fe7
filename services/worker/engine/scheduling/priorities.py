"""Priorities that grow with age, and who has to give way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from services.worker.engine.scheduling.request import ActiveRequest


class PriorityCounts:
    """How many requests there are of each priority, so that no step has to ask all of them for the most urgent."""

    def __init__(self) -> None:
        self._num_requests: Counter[int] = Counter()

    @property
    def most_urgent(self) -> int:
        """The lowest priority there is; 0 without requests."""
        return min(self._num_requests, default=0)

    def add(self, active: ActiveRequest) -> None:
        """One more request."""
        self._num_requests[active.priority] += 1

    def remove(self, active: ActiveRequest) -> None:
        """One request less."""
        self._num_requests[active.priority] -= 1
        if not self._num_requests[active.priority]:
            del self._num_requests[active.priority]

    def check_integrity(self, requests: Collection[ActiveRequest]) -> None:
        """AssertionError unless these are the requests that were counted."""
        found = Counter(active.priority for active in requests)
        assert found == self._num_requests, "priorities are counted wrong"


class AgedPriorities:
    """Priorities at one moment.

    A request's priority grows with the time since its submission, up to that of the most urgent request there is: so it
    is passed over for a bounded time only, and among requests of equal priority age changes nothing.

    Args:
        most_urgent: the lowest priority of all requests there are, running ones too.
        now: by the clock of the requests' `submitted_at`.
        ageing_seconds: after so long, a request counts as one step more urgent.
    """

    def __init__(self, *, most_urgent: int, now: float, ageing_seconds: float) -> None:
        self._now = now
        self._ageing_seconds = ageing_seconds
        self._most_urgent = most_urgent

    def of(self, active: ActiveRequest) -> int:
        """A request's priority with its age; lower is more urgent."""
        if active.priority <= self._most_urgent:
            return active.priority
        num_steps = int((self._now - active.submitted_at) / self._ageing_seconds)
        return max(active.priority - num_steps, self._most_urgent)


def choose_victim(
    running: Collection[ActiveRequest], priorities: AgedPriorities, *, for_priority: int | None = None
) -> ActiveRequest | None:
    """Who gives its memory back: of the least urgent the youngest. None if nobody can be asked to; those that were
    preempted as often as they may be are left alone.

    Args:
        running: all that hold memory.
        priorities: of now: age protects a request that runs.
        for_priority: of a request that asks for the place, without its age, which gets a request in but throws nobody
            out: only less urgent ones give way to it. None: memory is out.
    """
    candidates = [
        active
        for active in running
        if not active.is_shielded and (for_priority is None or priorities.of(active) > for_priority)
    ]
    return max(candidates, key=lambda active: (priorities.of(active), active.arrival_idx), default=None)
