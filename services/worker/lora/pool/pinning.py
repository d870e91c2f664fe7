"""Adapters that an operator wants on the device, whoever else needs the room."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from hilora.errors import Exhausted, Unavailable
from services.worker.lora.pool.pool_entries import RocKey
from services.worker.lora.pool.residency_ticket import ResidencyTicket, TicketState
from services.worker.lora.pool.roc_pool import RocPool

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0
"""Before a pin is tried again whose source was away, or for which there was no room."""


class Pinning:
    """Brings adapters to the device like a request would, and pins them there. Used by the step loop's thread;
    `request` by any.

    Args:
        pool: the device tier.
        open_ticket: claims an adapter.
        close_ticket: gives up a claim.
        clock: in seconds, never going back.
    """

    def __init__(
        self,
        *,
        pool: RocPool,
        open_ticket: Callable[[Sequence[RocKey]], ResidencyTicket],
        close_ticket: Callable[[ResidencyTicket], None],
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._open_ticket = open_ticket
        self._close_ticket = close_ticket
        self._clock = clock
        self._inbox: deque[RocKey] = deque()
        self._retry_at: dict[RocKey, float] = {}
        self._tickets: dict[RocKey, ResidencyTicket] = {}

    @property
    def tickets(self) -> tuple[ResidencyTicket, ...]:
        """Claims that are under way."""
        return tuple(self._tickets.values())

    def request(self, key: RocKey) -> None:
        """Have an adapter pinned as soon as possible."""
        self._inbox.append(key)

    def begin(self) -> None:
        """Claim what is asked for, and what is to be tried again."""
        while self._inbox:
            self._retry_at[self._inbox.popleft()] = self._clock()
        due = [key for key, at in self._retry_at.items() if at <= self._clock()]
        for key in due:
            del self._retry_at[key]
            if key not in self._tickets:
                self._tickets[key] = self._open_ticket([key])

    def finish(self) -> None:
        """Pin what has come."""
        for key, ticket in list(self._tickets.items()):
            if ticket.state is TicketState.READY:
                self._pool.pin(key)
                _log.info("pinned %s", key.adapter_id)
            elif ticket.state is TicketState.FAILED:
                assert ticket.error is not None
                if isinstance(ticket.error, Exhausted | Unavailable):
                    self._retry_at[key] = self._clock() + _RETRY_SECONDS
                _log.warning("cannot pin %s: %s", key.adapter_id, ticket.error)
            else:
                continue
            del self._tickets[key]
            self._close_ticket(ticket)
