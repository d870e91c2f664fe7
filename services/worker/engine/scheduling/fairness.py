"""How much service each flow of requests has had: the memory that fairness between plans needs.

A flow is what competes: the requests whose plans name the same adapters. Each flow has a counter of the service it got,
and the one with the lowest is served next (virtual token counters: Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024). A flow that comes back after a rest must not spend what it did not use, and one that comes for the
first time must not be ahead of all others for ever: either begins at the *virtual time*, which is the service that a
flow would have got under equal shares. It moves with every token that is served, however many new flows arrive, so
that any counter is passed in the end: no flow starves.
"""

from __future__ import annotations

from collections import Counter

from hilora.routing_plan import RoutingPlan

Flow = tuple[str, ...]


def flow_of(plan: RoutingPlan) -> Flow:
    """What a plan's requests compete as: its adapters in order of their ids, without regard to budgets, which are drawn
    anew for each request. Empty for the base alone."""
    return tuple(sorted(budget.adapter_id for budget in plan.budgets if budget.num_rocs > 0))


class FairShares:
    """Service by flow, for flows that have requests, and for others while they are ahead of their share."""

    def __init__(self) -> None:
        self._virtual_time = 0.0
        self._service: dict[Flow, float] = {}
        self._num_requests: Counter[Flow] = Counter()

    @property
    def num_flows(self) -> int:
        """Flows that are remembered."""
        return len(self._service)

    def join(self, flow: Flow) -> None:
        """A flow has one more request."""
        if self._num_requests[flow] == 0:
            self._service[flow] = max(self._service.get(flow, 0.0), self._virtual_time)
        self._num_requests[flow] += 1

    def leave(self, flow: Flow) -> None:
        """A request of a flow ended."""
        self._num_requests[flow] -= 1
        if self._num_requests[flow] > 0:
            return
        del self._num_requests[flow]
        if not self._num_requests:
            # Nobody is left to be fair to.
            self._service.clear()
            self._virtual_time = 0.0
            return
        # At the end of a flow only, so that this is paid for once a request at most.
        gone = [
            other
            for other, service in self._service.items()
            if other not in self._num_requests and service <= self._virtual_time
        ]
        for other in gone:
            del self._service[other]

    def charge(self, flow: Flow, cost: float) -> None:
        """A flow that has requests got service."""
        self._service[flow] += cost
        self._virtual_time += cost / len(self._num_requests)

    def service(self, flow: Flow) -> float:
        """What a flow that has requests got; lowest is served next."""
        return self._service[flow]

    def check_integrity(self) -> None:
        """AssertionError unless every flow with requests has a counter."""
        assert all(count > 0 for count in self._num_requests.values()), "a flow without requests counts"
        assert self._num_requests.keys() <= self._service.keys(), "a flow has no counter"
