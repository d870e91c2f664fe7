"""What every hostile input is read under: a limit on memory, a limit on processor time, and one allowed way to fail."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from hilora.errors import HiloraError

ACCEPTED = "accepted"
"""In place of a code: the input is harmless, and is read as what it says."""

MAX_SECONDS = 20.0
"""Of processor time for one input, so that a busy machine makes nothing fail; the largest headers take a few."""

MAX_MEMORY_BYTES = 384 * 1024 * 1024
"""Above what the process has, for one input."""


class InputHangs(BaseException):
    """Not an `Exception`, so that no reader takes it for one of its own."""


@contextmanager
def limited(*, max_bytes: int = MAX_MEMORY_BYTES, max_seconds: float = MAX_SECONDS) -> Generator[None]:
    """Within the block the process gets so much more memory, and the block so much time of a processor.

    The interval timer of processor time is used, since the other one belongs to pytest-timeout.
    """

    def stop(*_: object) -> None:
        raise InputHangs(f"an input took more than {max_seconds:g} seconds")

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + max_bytes, before[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, max_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGVTALRM, handler)


def outcome(read: Callable[[], object], *, max_bytes: int = MAX_MEMORY_BYTES, max_seconds: float = MAX_SECONDS) -> str:
    """The code with which an input is refused, or `ACCEPTED`; anything but our own error goes through."""
    refusal = None
    with limited(max_bytes=max_bytes, max_seconds=max_seconds):
        try:
            read()
        except HiloraError as error:
            refusal = error
    if refusal is None:
        return ACCEPTED
    assert refusal.code
    assert refusal.message
    assert refusal.remedy, refusal.code
    assert len(str(refusal)) < 4000, "a refusal does not give back what it refuses"
    f"{refusal.message}{refusal.place}".encode()  # it can be written into an answer and a record
    return refusal.code
