"""Who runs next: by priority, then those that were preempted, then of the flow with least service the first to come."""

from __future__ import annotations

from collections.abc import Iterator

from services.worker.engine.scheduling.fairness import FairShares
from services.worker.engine.scheduling.priorities import AgedPriorities, PriorityCounts
from services.worker.engine.scheduling.request import ActiveRequest


class WaitingQueue:
    """The requests that wait, for the first time or after a preemption.

    Args:
        shares: service by flow; it knows the flow of every request here.
    """

    def __init__(self, shares: FairShares) -> None:
        self._shares = shares
        # A dict keeps the order of arrival and removes in constant time.
        self._requests: dict[str, ActiveRequest] = {}
        self._counts = PriorityCounts()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ActiveRequest]:
        return iter(tuple(self._requests.values()))

    @property
    def most_urgent(self) -> int:
        """The lowest priority in the queue, without regard to age."""
        return self._counts.most_urgent

    def check_integrity(self) -> None:
        """AssertionError unless priorities are counted right."""
        self._counts.check_integrity(self._requests.values())

    def add(self, active: ActiveRequest) -> None:
        """One more request waits."""
        self._requests[active.request_id] = active
        self._counts.add(active)

    def remove(self, active: ActiveRequest) -> bool:
        """Forget a request; False if it is not here."""
        if self._requests.pop(active.request_id, None) is None:
            return False
        self._counts.remove(active)
        return True

    def first(self, priorities: AgedPriorities) -> ActiveRequest | None:
        """Who is to run next. Requests whose ROCs are still on their way are passed over, so that a cold adapter delays
        only those that need it; None if all are, or nobody waits."""
        ready = [active for active in self._requests.values() if active.ticket is not None and active.ticket.is_ready]
        return min(ready, key=lambda active: self._rank(active, priorities), default=None)

    def _rank(self, active: ActiveRequest, priorities: AgedPriorities) -> tuple[int, bool, float, int]:
        is_new = active.num_preemptions == 0
        return priorities.of(active), is_new, self._shares.service(active.flow), active.arrival_idx
