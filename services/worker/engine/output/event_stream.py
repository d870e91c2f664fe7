"""What one request tells its caller: whatever happens, and on whichever thread, exactly one terminal event, last."""

from __future__ import annotations

import threading

from services.worker.engine.output.events import EngineEvent, EventSink, Failed, Finished


class EventStream:
    """A sink that closes itself behind the first terminal event. For any thread.

    Nearly always the engine's thread speaks. Where that one hangs, the watchdog ends a request in its place, and what
    the engine's thread may say of it later is dropped.

    Args:
        sink: the caller's.
    """

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._terminal: Finished | Failed | None = None

    @property
    def terminal(self) -> Finished | Failed | None:
        """The request's end, once it was told."""
        return self._terminal

    def tell(self, event: EngineEvent) -> bool:
        """Hand an event to the caller; False if its request was over, so that the event was dropped.

        Raises:
            Exception: whatever the sink raises. A terminal event counts as told nevertheless: there is nobody left.
        """
        with self._lock:
            if self._terminal is not None:
                return False
            if isinstance(event, Finished | Failed):
                self._terminal = event
            self._sink(event)
            return True
