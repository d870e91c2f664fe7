"""Whether a worker that fails is left alone for a while (M. Nygard, "Release It!", 2018, "Circuit Breaker")."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum

_FAILURES_TO_OPEN = 3
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_MOST_DOUBLINGS = 16
"""Far beyond the longest pause; keeps the power of two small."""


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

    A request tells how it went through the `Attempt` that `begin` gives it. What was sent before the circuit opened
    last says nothing any more: those losses are what opened it, and must not speak against a probe.

    Args:
        monotonic: a clock.
        jitter: a number in [0, 1): pauses are up to half longer by it, so that routers do not probe together.
    """

    def __init__(self, *, monotonic: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._monotonic = monotonic
        self._jitter = jitter
        self._num_failures = 0
        self._pause_doublings = 0
        self._open_until: float | None = None
        self._probe: Attempt | None = None
        self._num_openings = 0

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
        return state is CircuitState.CLOSED or (state is CircuitState.HALF_OPEN and self._probe is None)

    @property
    def seconds_until_probe(self) -> float:
        """0 where a request may be sent now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._monotonic())

    def begin(self) -> Attempt:
        """A request is on its way; while half open, it is the probe."""
        attempt = Attempt(self, num_openings=self._num_openings)
        if self.state is CircuitState.HALF_OPEN and self._probe is None:
            self._probe = attempt
        return attempt

    def note_answer(self, attempt: Attempt) -> None:
        """An attempt's worker generates; called by the attempt."""
        if attempt is not self._probe:
            return
        self._probe = None
        self._open_until = None
        self._num_failures = _FAILURES_TO_OPEN - 1

    def note_end(self, attempt: Attempt, *, is_success: bool | None) -> None:
        """How an attempt went, None if it says nothing; called by the attempt."""
        was_probe = attempt is self._probe
        if was_probe:
            self._probe = None
        if is_success is None or attempt.num_openings != self._num_openings:
            return
        if is_success:
            self._num_failures = self._pause_doublings = 0
            self._open_until = None
            return
        self._num_failures += 1
        if was_probe or self._num_failures >= _FAILURES_TO_OPEN:
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._pause_doublings)
            self._pause_doublings = min(self._pause_doublings + 1, _MOST_DOUBLINGS)
            self._num_openings += 1
            self._open_until = self._monotonic() + pause * (1.0 + self._jitter() / 2)


class Attempt:
    """One request as its worker's circuit sees it. The first verdict counts; later ones change nothing.

    Args:
        circuit: of the worker that it was sent to.
        num_openings: of the circuit until then.
    """

    def __init__(self, circuit: Circuit, *, num_openings: int) -> None:
        self._circuit = circuit
        self._is_over = False
        self.num_openings = num_openings

    def answers(self) -> None:
        """The worker generates. A probe lets the others in from here on, since it may run for minutes; until one
        request is answered as a whole, the next failure opens the circuit again."""
        if not self._is_over:
            self._circuit.note_answer(self)

    def succeeded(self) -> None:
        """The worker did what it was asked."""
        self._conclude(is_success=True)

    def failed(self) -> None:
        """The worker was lost during the request."""
        self._conclude(is_success=False)

    def abandoned(self) -> None:
        """It ended without saying anything about the worker: its client left, or the worker had a reason."""
        self._conclude(is_success=None)

    def _conclude(self, *, is_success: bool | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._circuit.note_end(self, is_success=is_success)
