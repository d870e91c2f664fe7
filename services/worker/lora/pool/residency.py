"""Bringing a request's ROCs to the device without ever stalling the step loop.

A request holds a ticket. Its components are fetched on loader threads (from the host tier, or from what is behind it);
when all of them are in host memory, the step loop takes the rows for all of them at once, and another loader thread
writes the rows. A ticket whose ROCs are all on the device already is ready as soon as it is opened.

Room goes by age. While the oldest ticket with its components in host memory does not fit, younger ones may only use
what is resident. Where requests for resident adapters overlap without end, none of these would ever become free: a
ticket that has waited for a while has enough of them drained.

`Residency` is used by the step loop's thread only; loader threads touch the pool and what is on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from hilora.errors import GenerationFailed, HiloraError
from hilora.routing_plan import RoutingPlan
from services.worker.lora.pool.component_fetches import ComponentFetches
from services.worker.lora.pool.loader_threads import LoaderThreads, failure_of
from services.worker.lora.pool.pinning import Pinning
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.residency_ticket import ResidencyTicket, TicketState, keys_of
from services.worker.lora.pool.roc_pool import RocPool
from services.worker.ports import ComponentSource

__all__ = ["Residency", "ResidencyTicket", "TicketState", "keys_of"]

_NUM_WRITERS = 1
"""Writing is bound by memory, which one thread can saturate beside the forward pass."""


class Residency:
    """Fetches, places and holds ROCs.

    Args:
        pool: the device tier.
        source: the host tier, and what is behind it.
        num_threads: fetches at a time.
        on_progress: called from a loader thread when `poll` has something to do.
        fetch_timeout_seconds: a ticket whose components take longer fails.
        max_placing_seconds: a ticket that has no room for longer gets it as soon as running requests end.
        clock: in seconds, never going back.
    """

    def __init__(
        self,
        *,
        pool: RocPool,
        source: ComponentSource,
        num_threads: int,
        on_progress: Callable[[], None],
        fetch_timeout_seconds: float = 120.0,
        max_placing_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._on_progress = on_progress
        self._fetch_timeout_seconds = fetch_timeout_seconds
        self._max_placing_seconds = max_placing_seconds
        self._clock = clock
        self._fetches = ComponentFetches(
            source=source,
            sizes_of=lambda adapter, adapter_id: pool.sizes_of(adapter, adapter_id=adapter_id),
            num_threads=num_threads,
            on_progress=on_progress,
        )
        self._writers: LoaderThreads[None] = LoaderThreads(_NUM_WRITERS, name="roc-write")
        self._writes: dict[RocKey, Future[None]] = {}
        # Tickets between FETCHING and READY, oldest first.
        self._pending: list[ResidencyTicket] = []
        self._drained_for: ResidencyTicket | None = None
        self._num_departures = 0
        self._held_bytes = 0
        self._pinning = Pinning(pool=pool, open_ticket=self.open_keys, close_ticket=self.close, clock=clock)

    def open(self, plan: RoutingPlan) -> ResidencyTicket:
        """Claim a plan's ROCs; ready at once if all are resident."""
        return self.open_keys(keys_of(plan))

    def open_keys(self, keys: Sequence[RocKey]) -> ResidencyTicket:
        """Claim some adapters; ready at once if all are resident."""
        ticket = ResidencyTicket(keys=tuple(keys), state=TicketState.FETCHING, since=self._clock())
        self._pool.count_lookup(ticket.keys)
        if self._pool.is_committed(ticket.keys) and self._pool.try_acquire(ticket.keys, {}):
            ticket.has_references = True
            self._enter(ticket, TicketState.READY)
            return ticket
        self._pending.append(ticket)
        self._fetch(ticket)
        return ticket

    def close(self, ticket: ResidencyTicket) -> None:
        """Give up a claim, in any state; closing twice is fine."""
        self._release(ticket)
        if ticket in self._pending:
            self._depart(ticket)
        if ticket.state is not TicketState.FAILED:
            self._enter(ticket, TicketState.CLOSED)

    def poll(self) -> None:
        """Move every pending ticket as far as it can go. Never blocks; between steps, as tensors may be replaced."""
        self._pool.trim()
        # Once for all tickets, each of which asks: what arrives meanwhile counts from the next time on.
        self._held_bytes = self._fetches.held_bytes
        self._pinning.begin()
        self._finish_writes()
        is_room_short = False
        for ticket in list(self._pending):
            if ticket.state is TicketState.FETCHING:
                self._check_fetch(ticket)
            if ticket.state is TicketState.PLACING:
                is_placed = self._place(ticket, is_first=not is_room_short)
                is_room_short = is_room_short or not is_placed
            if ticket.state is TicketState.WRITING and self._pool.is_committed(ticket.keys):
                self._enter(ticket, TicketState.READY)
            if ticket.state in {TicketState.READY, TicketState.FAILED}:
                self._settle(ticket)
        self._pinning.finish()

    def pin(self, key: RocKey) -> None:
        """Bring an adapter to the device and keep it there until it is retired. From any thread; returns at once."""
        self._pinning.request(key)
        self._on_progress()

    def shutdown(self) -> None:
        """Start nothing more. A download that hangs is not waited for: it would outlast every grace period."""
        self._fetches.shutdown()
        self._writers.shutdown()

    def check_integrity(self, tickets: Sequence[ResidencyTicket]) -> None:
        """AssertionError unless the pool's reference counts are exactly those of the open tickets."""
        self._pool.check_integrity()
        expected: dict[RocKey, int] = {}
        tickets = (*tickets, *self._pinning.tickets)
        for ticket in tickets:
            if ticket.has_references:
                for key in ticket.keys:
                    expected[key] = expected.get(key, 0) + 1
        for key in {*expected, *self._pool.resident_keys()}:
            found = self._pool.num_references(key)
            assert found == expected.get(key, 0), f"{key} has {found} references, not {expected.get(key, 0)}"
        open_tickets = set(map(id, tickets))
        assert all(id(ticket) in open_tickets for ticket in self._pending), "a closed ticket is still pending"
        assert self._drained_for is None or self._drained_for in self._pending, "a drain has outlived its ticket"
        self._fetches.check_integrity(set(map(id, self._pending)))

    def _enter(self, ticket: ResidencyTicket, state: TicketState) -> None:
        ticket.state = state
        ticket.since = self._clock()

    def _fetch(self, ticket: ResidencyTicket) -> None:
        """Begin to fetch what is missing, unless enough is waiting in host memory already."""
        if ticket is not self._pending[0] and self._held_bytes > self._pool.capacity_bytes:
            return
        self._enter(ticket, TicketState.FETCHING)
        ticket.is_fetching = True
        for key in ticket.keys:
            if not self._pool.is_known(key):
                self._fetches.join(ticket, key)

    def _check_fetch(self, ticket: ResidencyTicket) -> None:
        if not ticket.is_fetching:
            self._fetch(ticket)
            if not ticket.is_fetching:
                return
        try:
            if self._fetches.is_done(ticket):
                self._enter(ticket, TicketState.PLACING)
                return
        except BaseException as error:  # whatever the fetch raised, it is this ticket's
            self._fail(ticket, error)
            return
        if self._clock() - ticket.since > self._fetch_timeout_seconds:
            self._fail(ticket, self._fetches.give_up(ticket, after_seconds=self._fetch_timeout_seconds))

    def _place(self, ticket: ResidencyTicket, *, is_first: bool) -> bool:
        """Take references and rows; False if there is no room now. Only the first that has none may reserve rows:
        younger ones would take the room that it is waiting for."""
        now = self._pool.num_changes + self._num_departures
        copies = self._fetches.copies(ticket) if is_first else {}
        missing = {key: copy.sizes for key, copy in copies.items()}
        if is_first and any(key not in missing and not self._pool.is_known(key) for key in ticket.keys):
            # Evicted between opening and now.
            ticket.is_fetching = False
            self._fetch(ticket)
            return True
        if ticket.refused_at != now:
            try:
                is_placed = self._pool.try_acquire(ticket.keys, missing)
            except HiloraError as error:
                self._fail(ticket, error)
                return True
            if is_placed:
                ticket.has_references = True
                self._enter(ticket, TicketState.WRITING)
                # Asked only now, with the references held: a retirement on another thread may have freed a key.
                for key in ticket.keys:
                    if key not in self._writes and not self._pool.is_committed([key]):
                        self._write(key, ticket)
                return True
            # As it was before it was asked for: what another thread has changed since then may be the room.
            ticket.refused_at = now
        is_drained = self._drained_for is ticket and self._pool.is_draining
        if is_first and not is_drained and self._clock() - ticket.since > self._max_placing_seconds:
            self._drained_for = ticket
            self._pool.drain(ticket.keys, missing)
        return False

    def _write(self, key: RocKey, ticket: ResidencyTicket) -> None:
        adapter = self._fetches.copies(ticket)[key].adapter
        self._writes[key] = self._writers.submit(self._pool.write, key, adapter)
        self._writes[key].add_done_callback(lambda _: self._on_progress())

    def _finish_writes(self) -> None:
        for key, write in list(self._writes.items()):
            if not write.done():
                continue
            del self._writes[key]
            error = failure_of(write)
            if error is None:
                self._pool.commit(key)
                continue
            self._pool.abandon(key)
            for ticket in list(self._pending):
                if ticket.has_references and key in ticket.keys:
                    self._fail(ticket, error)
                    self._settle(ticket)

    def _fail(self, ticket: ResidencyTicket, error: BaseException) -> None:
        if not isinstance(error, HiloraError):
            cause = error
            error = GenerationFailed(
                f"Loading the components of {', '.join(key.adapter_id for key in ticket.keys)} failed: {error}",
                code="component_load_failed",
                remedy="See the worker's log; send the request again.",
            )
            # Whether the device is lost can be told by it.
            error.__cause__ = cause
        ticket.error = error
        self._enter(ticket, TicketState.FAILED)

    def _settle(self, ticket: ResidencyTicket) -> None:
        """Take a ticket that is READY or FAILED out of the pending ones."""
        if ticket.state is TicketState.FAILED:
            self._release(ticket)
        self._depart(ticket)

    def _release(self, ticket: ResidencyTicket) -> None:
        if ticket.has_references:
            ticket.has_references = False
            self._pool.release([key for key in ticket.keys if self._pool.is_known(key)])

    def _depart(self, ticket: ResidencyTicket) -> None:
        self._pending.remove(ticket)
        self._num_departures += 1
        self._fetches.leave(ticket)
        if self._drained_for is ticket:
            self._drained_for = None
            self._pool.stop_draining()
