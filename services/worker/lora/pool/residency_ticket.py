"""A request's claim on the ROCs of its plan, and the states it goes through.

    FETCHING -> PLACING -> WRITING -> READY -> CLOSED
        |          |          |                  ^       (a failing fetch or write: FAILED; close from any state)
        +----------+----------+------------------+

A state is left in the direction of the arrows only, but for components that are evicted while a ticket waits for room:
it fetches them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from hilora.errors import HiloraError
from hilora.routing_plan import RoutingPlan
from services.worker.lora.pool.pool_entries import RocKey


class TicketState(Enum):
    """Where a request's ROCs are."""

    FETCHING = auto()
    """On their way to host memory."""
    PLACING = auto()
    """In host memory; rows of the pool are not yet theirs."""
    WRITING = auto()
    """Rows are reserved and being written."""
    READY = auto()
    """On the device, held by this ticket."""
    FAILED = auto()
    CLOSED = auto()


@dataclass(kw_only=True, slots=True, eq=False)
class ResidencyTicket:
    """One request's claim. Changed by `Residency` alone."""

    keys: tuple[RocKey, ...]
    state: TicketState
    since: float = 0.0
    """When it entered its state, by the residency's clock."""
    is_fetching: bool = False
    """Whether its fetches have begun: a long queue must not fill main memory."""
    error: HiloraError | None = None
    has_references: bool = False
    refused_at: int = -1
    """State of the world in which there was no room for it."""

    @property
    def is_ready(self) -> bool:
        """Whether every ROC of the plan is on the device and stays there until the ticket is closed."""
        return self.state is TicketState.READY


def keys_of(plan: RoutingPlan) -> tuple[RocKey, ...]:
    """The distinct adapters of a plan that a token may use."""
    return tuple(
        dict.fromkeys(RocKey(budget.adapter_id, plan.gate.basis) for budget in plan.budgets if budget.num_rocs > 0)
    )
