"""How fast requests leave the queue, to tell those that find no place in it when to come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_NUM_REMEMBERED = 64
"""Departures that the rate is taken from: enough to be steady, few enough to be recent."""
_LEAST_SECONDS = 0.1
_MOST_SECONDS = 60.0
_UNKNOWN_SECONDS = 1.0
"""Before the first departures."""


class ServiceRate:
    """Departures from the queue over the recent past, as far as somebody was left waiting: who finds a place at once
    says nothing about how fast a queue moves, and neither do the hours in which nobody comes.

    `note` and `observe` are for one thread; `seconds_until` for any.

    Args:
        clock: in seconds, never going back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By a clock that stands still while nobody waits.
        self._departures: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        # Its reading, and since when it goes on; one tuple, so that other threads read what belongs together.
        self._reading: tuple[float, float | None] = (0.0, None)

    def note(self) -> None:
        """A request left the queue."""
        if self._reading[1] is not None:
            self._departures.append(self._waited_seconds())

    def observe(self, num_waiting: int) -> None:
        """So many were left waiting just now."""
        seconds, since = self._reading
        if num_waiting and since is None:
            self._reading = (seconds, self._clock())
        elif not num_waiting and since is not None:
            self._reading = (self._waited_seconds(), None)

    def seconds_until(self, num_departures: float) -> float:
        """When so many more will have left, at the recent rate; at least a tenth of a second, at most a minute."""
        departures = self._departures.copy()
        if len(departures) < 2:
            return _UNKNOWN_SECONDS
        # Up to now, not to the last departure: when nothing moves any more, the rate goes down.
        seconds_each = (self._waited_seconds() - departures[0]) / (len(departures) - 1)
        return min(max(num_departures * seconds_each, _LEAST_SECONDS), _MOST_SECONDS)

    def _waited_seconds(self) -> float:
        seconds, since = self._reading
        return seconds if since is None else seconds + self._clock() - since
