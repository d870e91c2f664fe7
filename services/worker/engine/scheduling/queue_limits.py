"""How many requests may wait, and for how long."""

from __future__ import annotations

from hilora.errors import Exhausted, HiloraError, QueueFull
from services.worker.engine.config import EngineConfig
from services.worker.engine.scheduling.request import ActiveRequest
from services.worker.engine.scheduling.service_rate import ServiceRate
from services.worker.lora.pool.residency import TicketState

_RETRY_SHARE = 0.5
"""Who finds no place in the queue comes back when so much of it has gone: later, slots could stand empty."""
_REMEDY = "Try again after the time that is told, or add workers."


class QueueLimits:
    """Says who may not wait any more, and when to try again.

    Args:
        config: limits.
        rate: how fast the queue moves.
    """

    def __init__(self, config: EngineConfig, rate: ServiceRate) -> None:
        self._config = config
        self._rate = rate

    def check_room(self, num_waiting: int) -> None:
        """Refuse one more request.

        Raises:
            QueueFull: as many wait as may; `retry_after_seconds` follows from how fast they have been served.
        """
        if num_waiting >= self._config.max_waiting:
            raise QueueFull(
                f"{num_waiting} requests are waiting already.",
                retry_after_seconds=self._retry_after_seconds(num_waiting),
                remedy=_REMEDY,
            )

    def verdict(self, active: ActiveRequest, *, num_waiting: int, now: float) -> HiloraError | None:
        """What ends a request that waits for what will not come, or did not come in time; None if it may go on.

        Args:
            active: a waiting request.
            num_waiting: requests in the queue.
            now: by the clock of `submitted_at`.
        """
        ticket, limit = active.ticket, self._config.max_queue_seconds
        if ticket is not None and ticket.state is TicketState.FAILED:
            assert ticket.error is not None
            return ticket.error
        # One that has begun is in the queue because it gave way, and has waited for its turn before.
        if limit is None or active.admitted_at is not None or now - active.submitted_at <= limit:
            return None
        is_ready = ticket is not None and ticket.is_ready
        return Exhausted(
            f"The request did not begin to run within {limit} s: "
            + ("other requests held all places." if is_ready else "its adapters were not on the device yet."),
            code="queue_timeout",
            retry_after_seconds=self._retry_after_seconds(num_waiting),
            remedy=_REMEDY,
        )

    def _retry_after_seconds(self, num_waiting: int) -> float:
        return self._rate.seconds_until(num_waiting * _RETRY_SHARE)
