"""Whether a worker that fails is left alone for a while (M. Nygard, "Release It!", 2018, "Circuit Breaker")."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum

_FAILURES_TO_OPEN = 3
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class CircuitState(StrEnum):
    """What a worker may be sent."""

    CLOSED = "closed"
    """Anything."""
    OPEN = "open"
    """Nothing, for a time."""
    HALF_OPEN = "half_open"
    """One request, to see."""


class Circuit:
    """Opens after consecutive failures; each failed probe doubles the pause, a success ends it all.

    Args:
        monotonic: a clock.
        jitter: a number in [0, 1): pauses are up to half longer by it, so that routers do not probe together.
    """

    def __init__(self, *, monotonic: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._monotonic = monotonic
        self._jitter = jitter
        self._num_failures = 0
        self._num_openings = 0
        self._open_until: float | None = None
        self._is_probed = False

    @property
    def state(self) -> CircuitState:
        """At this moment."""
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._monotonic() < self._open_until else CircuitState.HALF_OPEN

    @property
    def takes_requests(self) -> bool:
        """Whether one more request may be sent."""
        state = self.state
        return state is CircuitState.CLOSED or (state is CircuitState.HALF_OPEN and not self._is_probed)

    @property
    def seconds_until_probe(self) -> float:
        """0 where a request may be sent now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._monotonic())

    def sent(self) -> None:
        """A request is on its way; while half open, it is the probe."""
        if self.state is CircuitState.HALF_OPEN:
            self._is_probed = True

    def abandoned(self) -> None:
        """A request ended without saying anything about the worker: its client left."""
        self._is_probed = False

    def succeeded(self) -> None:
        """The worker did what it was asked."""
        self._num_failures = self._num_openings = 0
        self._open_until = None
        self._is_probed = False

    def failed(self) -> None:
        """The worker was lost during a request."""
        was_half_open = self.state is CircuitState.HALF_OPEN
        self._is_probed = False
        self._num_failures += 1
        if self.state is CircuitState.OPEN:
            return
        if was_half_open or self._num_failures >= _FAILURES_TO_OPEN:
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._num_openings)
            self._num_openings = min(self._num_openings + 1, 16)
            self._open_until = self._monotonic() + pause * (1.0 + self._jitter() / 2)
