"""How many requests may be run a second time.

Without a limit an outage doubles the load of those who are left, which is how one dead worker becomes a dead fleet
("Addressing Cascading Failures", in "Site Reliability Engineering", 2016; the form is that of Finagle's RetryBudget).
"""

from __future__ import annotations

from collections.abc import Callable


class RetryBudget:
    """At no moment were there more retries than `reserve + per_second * seconds + share * requests`.

    Args:
        monotonic: a clock.
        share: retries that each request pays for.
        per_second: retries that are there without any traffic.
        reserve: retries that are there at the beginning, and the most that idle time saves up.
        most: the most that is ever saved up.
    """

    def __init__(
        self,
        *,
        monotonic: Callable[[], float],
        share: float = 0.2,
        per_second: float = 1.0,
        reserve: float = 10.0,
        most: float = 100.0,
    ) -> None:
        self._monotonic = monotonic
        self._share = share
        self._per_second = per_second
        self._reserve = reserve
        self._most = most
        self._balance = reserve
        self._updated_at = monotonic()

    def request(self) -> None:
        """A request came in."""
        self._balance = min(self._most, self._balance + self._share)

    def take(self) -> bool:
        """Whether a retry may be made; if so, it is paid for."""
        now = self._monotonic()
        if self._balance < self._reserve:
            self._balance = min(self._reserve, self._balance + self._per_second * (now - self._updated_at))
        self._updated_at = now
        # Five fifths are one, whatever floating point makes of them.
        if self._balance < 1.0 - 1e-9:
            return False
        self._balance -= 1.0
        return True
