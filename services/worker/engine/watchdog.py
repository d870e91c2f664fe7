"""Notices a step that does not return.

A kernel, a driver or a lock can hang, and the thread that waits for it can neither be stopped nor asked. What can be
done from outside: say so, keep new requests away, and tell those that wait to go elsewhere. If the step returns after
all, the engine goes on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

_log = logging.getLogger(__name__)

_CHECKS_PER_LIMIT = 4
_LONGEST_SLEEP_SECONDS = 5.0


class Watchdog:
    """Watches the steps of one thread.

    `begin_step` and `end_step` are for the watched thread. The callbacks come one after the other, never both at once:
    `on_stuck` on the watchdog's thread, `on_recovery` on the watched one.

    Args:
        max_step_seconds: a step that takes longer is stuck.
        on_stuck: called once for each such step.
        on_recovery: called when it has returned.
        clock: in seconds, never going back.
    """

    def __init__(
        self,
        *,
        max_step_seconds: float,
        on_stuck: Callable[[], None],
        on_recovery: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_step_seconds = max_step_seconds
        self._on_stuck = on_stuck
        self._on_recovery = on_recovery
        self._clock = clock
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._is_stuck = False
        self._watched: threading.Thread | None = None
        self._is_stopping = threading.Event()

    @property
    def is_stuck(self) -> bool:
        """Whether a step is running that should be over."""
        return self._is_stuck

    def begin_step(self) -> None:
        """A step begins."""
        self._began_at = self._clock()

    def end_step(self) -> None:
        """The step is over."""
        with self._lock:
            self._began_at = None
            if not self._is_stuck:
                return
            self._is_stuck = False
            _log.warning("the step that was stuck has returned")
            _call(self._on_recovery)

    def check(self) -> None:
        """Look at the step of now."""
        with self._lock:
            if self._is_stuck or self._began_at is None:
                return
            seconds = self._clock() - self._began_at
            if seconds <= self._max_step_seconds:
                return
            self._is_stuck = True
            _log.error("a step has not returned for %.1f s; it is at\n%s", seconds, self._stack())
            _call(self._on_stuck)

    def start(self, watched: threading.Thread) -> None:
        """Begin to watch a thread, on a thread of its own."""
        self._watched = watched
        threading.Thread(target=self._run, name="engine-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more. Returns at once."""
        self._is_stopping.set()

    def _run(self) -> None:
        sleep_seconds = min(self._max_step_seconds / _CHECKS_PER_LIMIT, _LONGEST_SLEEP_SECONDS)
        while not self._is_stopping.wait(sleep_seconds):
            self.check()

    def _stack(self) -> str:
        ident = None if self._watched is None else self._watched.ident
        # Documented for debuggers, which is what this is.
        frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        frame = None if ident is None else frames.get(ident)
        return "an unknown place" if frame is None else "".join(traceback.format_stack(frame))


def _call(callback: Callable[[], None]) -> None:
    """Whatever a callback raises ends neither the watchdog nor the thread that it watches."""
    try:
        callback()
    except Exception:
        _log.exception("what is to happen around a stuck step failed")
