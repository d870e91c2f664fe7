"""Bringing a request's ROCs to the device without ever stalling the step loop.

A request holds a ticket. Its components are fetched on loader threads (from the host tier, or from the registry);
when all of them are in host memory, the step loop takes the rows for all of them at once, and a loader thread writes
the rows. A ticket whose ROCs are all on the device already is ready as soon as it is opened.

    FETCHING -> PLACING -> WRITING -> READY -> CLOSED
        |          |          |                  ^       (a failing fetch or write: FAILED; close from any state)
        +----------+----------+------------------+

`Residency` is used by the step loop's thread only; loader threads touch the pool and the queue of completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto

from hilora.adapter import DecomposedAdapter
from hilora.errors import GenerationFailed, HiloraError
from hilora.routing_plan import RoutingPlan
from services.worker.lora.roc_arena import ComponentSizes
from services.worker.lora.roc_pool import RocKey, RocPool
from services.worker.ports import ComponentSource


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
    """One request's claim on the ROCs of its plan."""

    keys: tuple[RocKey, ...]
    state: TicketState
    error: HiloraError | None = None
    has_references: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether every ROC of the plan is on the device and stays there until the ticket is closed."""
        return self.state is TicketState.READY


def keys_of(plan: RoutingPlan) -> tuple[RocKey, ...]:
    """The distinct adapters of a plan that a token may use."""
    return tuple(
        dict.fromkeys(RocKey(budget.adapter_id, plan.gate.basis) for budget in plan.budgets if budget.num_rocs > 0)
    )


@dataclass(kw_only=True, slots=True)
class _HostCopy:
    """Components on their way through host memory, and who waits for them."""

    loading: Future[tuple[DecomposedAdapter, ComponentSizes]]
    tickets: list[ResidencyTicket] = field(default_factory=list)


class Residency:
    """Fetches, places and holds ROCs.

    Args:
        pool: the device tier.
        source: the host tier, and what is behind it.
        num_threads: loader threads.
        on_progress: called from a loader thread when `poll` has something to do.
    """

    def __init__(
        self, *, pool: RocPool, source: ComponentSource, num_threads: int, on_progress: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._source = source
        self._on_progress = on_progress
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="roc-loader")
        self._host: dict[RocKey, _HostCopy] = {}
        self._writes: dict[RocKey, Future[None]] = {}
        # Tickets between FETCHING and READY, oldest first.
        self._pending: list[ResidencyTicket] = []

    def open(self, plan: RoutingPlan) -> ResidencyTicket:
        """Claim a plan's ROCs; ready at once if all are resident."""
        keys = keys_of(plan)
        ticket = ResidencyTicket(keys=keys, state=TicketState.PLACING)
        if self._pool.is_committed(keys) and self._pool.try_acquire(keys, {}):
            ticket.has_references = True
            ticket.state = TicketState.READY
            return ticket
        self._fetch_missing(ticket)
        self._pending.append(ticket)
        return ticket

    def close(self, ticket: ResidencyTicket) -> None:
        """Give up a claim, in any state; closing twice is fine."""
        if ticket.has_references:
            ticket.has_references = False
            self._pool.release([key for key in ticket.keys if self._pool.is_known(key)])
        if ticket in self._pending:
            self._pending.remove(ticket)
        self._leave_host_copies(ticket)
        if ticket.state is not TicketState.FAILED:
            ticket.state = TicketState.CLOSED

    def poll(self) -> None:
        """Move every pending ticket as far as it can go. Never blocks."""
        if not self._pending and not self._writes:
            return
        self._finish_writes()
        is_room_short = False
        for ticket in list(self._pending):
            if ticket.state is TicketState.FETCHING:
                self._check_fetch(ticket)
            if ticket.state is TicketState.PLACING:
                # Once the oldest does not fit, younger ones may only use what is resident anyway: they would take the
                # room that the oldest is waiting for.
                is_placed = self._place(ticket, may_reserve=not is_room_short)
                is_room_short = is_room_short or not is_placed
            if ticket.state is TicketState.WRITING and self._pool.is_committed(ticket.keys):
                ticket.state = TicketState.READY
            if ticket.state in {TicketState.READY, TicketState.FAILED}:
                self._settle(ticket)

    def shutdown(self) -> None:
        """Start nothing more. A download that hangs is not waited for: it would outlast every grace period."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check_integrity(self, tickets: Sequence[ResidencyTicket]) -> None:
        """AssertionError unless the pool's reference counts are exactly those of the open tickets."""
        self._pool.check_integrity()
        expected: dict[RocKey, int] = {}
        for ticket in tickets:
            if ticket.has_references:
                for key in ticket.keys:
                    expected[key] = expected.get(key, 0) + 1
        for key in {*expected, *self._pool.resident_keys()}:
            found = self._pool.num_references(key)
            assert found == expected.get(key, 0), f"{key} has {found} references, not {expected.get(key, 0)}"
        open_tickets = set(map(id, tickets))
        assert all(id(ticket) in open_tickets for ticket in self._pending), "a closed ticket is still pending"

    def _fetch_missing(self, ticket: ResidencyTicket) -> None:
        for key in ticket.keys:
            if self._pool.is_known(key):
                continue
            copy = self._host.get(key)
            if copy is None:
                copy = self._host[key] = _HostCopy(loading=self._executor.submit(self._fetch, key))
                copy.loading.add_done_callback(lambda _: self._on_progress())
            if ticket not in copy.tickets:
                copy.tickets.append(ticket)
            ticket.state = TicketState.FETCHING

    def _fetch(self, key: RocKey) -> tuple[DecomposedAdapter, ComponentSizes]:
        adapter = self._source.fetch(key.adapter_id, key.basis)
        return adapter, self._pool.sizes_of(adapter, adapter_id=key.adapter_id)

    def _check_fetch(self, ticket: ResidencyTicket) -> None:
        copies = [self._host[key] for key in ticket.keys if key in self._host and ticket in self._host[key].tickets]
        for copy in copies:
            if copy.loading.done() and (error := copy.loading.exception()) is not None:
                self._fail(ticket, error)
                return
        if all(copy.loading.done() for copy in copies):
            ticket.state = TicketState.PLACING

    def _place(self, ticket: ResidencyTicket, *, may_reserve: bool) -> bool:
        """Take references and rows; False if there is no room now."""
        missing = {
            key: self._host[key].loading.result()[1]
            for key in ticket.keys
            if may_reserve and key in self._host and ticket in self._host[key].tickets
        }
        absent = [key for key in ticket.keys if not self._pool.is_known(key)]
        if may_reserve and any(key not in missing for key in absent):
            # Evicted between opening and now: fetch it again.
            self._fetch_missing(ticket)
            return True
        try:
            if not self._pool.try_acquire(ticket.keys, missing):
                return False
        except HiloraError as error:
            self._fail(ticket, error)
            return True
        ticket.has_references = True
        ticket.state = TicketState.WRITING
        # Asked only now, with the references held: a retirement on another thread may have freed a key since `absent`.
        for key in ticket.keys:
            if key in self._writes or self._pool.is_committed([key]):
                continue
            adapter = self._host[key].loading.result()[0]
            self._writes[key] = self._executor.submit(self._pool.write, key, adapter)
            self._writes[key].add_done_callback(lambda _: self._on_progress())
        return True

    def _finish_writes(self) -> None:
        for key, write in list(self._writes.items()):
            if not write.done():
                continue
            del self._writes[key]
            error = write.exception()
            if error is None:
                self._pool.commit(key)
            else:
                self._pool.abandon(key)
                for ticket in list(self._pending):
                    if ticket.has_references and key in ticket.keys:
                        self._fail(ticket, error)
                        self._settle(ticket)
            self._drop_host_copy_if_idle(key)

    def _fail(self, ticket: ResidencyTicket, error: BaseException) -> None:
        if not isinstance(error, HiloraError):
            error = GenerationFailed(
                f"Loading the components of {', '.join(key.adapter_id for key in ticket.keys)} failed: {error}",
                code="component_load_failed",
                remedy="See the worker's log; send the request again.",
            )
        ticket.error = error
        ticket.state = TicketState.FAILED

    def _settle(self, ticket: ResidencyTicket) -> None:
        """Take a ticket that is READY or FAILED out of the pending ones."""
        self._pending.remove(ticket)
        if ticket.state is TicketState.FAILED and ticket.has_references:
            ticket.has_references = False
            self._pool.release([key for key in ticket.keys if self._pool.is_known(key)])
        self._leave_host_copies(ticket)

    def _leave_host_copies(self, ticket: ResidencyTicket) -> None:
        for key in ticket.keys:
            copy = self._host.get(key)
            if copy is not None and ticket in copy.tickets:
                copy.tickets.remove(ticket)
                self._drop_host_copy_if_idle(key)

    def _drop_host_copy_if_idle(self, key: RocKey) -> None:
        # The host tier keeps its own copy within its own limit; this one only lives while somebody waits for it.
        copy = self._host.get(key)
        if copy is not None and not copy.tickets and key not in self._writes:
            copy.loading.cancel()
            del self._host[key]
