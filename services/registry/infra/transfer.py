"""Counts what a source brings in, tells who listens, and stops it at the limits on bytes and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hilora.errors import InvalidInput
from services.registry.ports import ProgressListener

COPY_BYTES = 1024 * 1024
"""Bytes that are moved at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What one adapter may cost."""

    max_bytes: int
    """Limit on the sum of its files, or on its archive."""
    max_seconds: float
    """Limit on the time its fetch takes."""


class Transfer:
    """One fetch; its time begins now.

    Args:
        limits: when to stop.
        on_progress: told after every piece.
        place: the field of the request that an error points to.
    """

    def __init__(self, limits: FetchLimits, *, on_progress: ProgressListener, place: str) -> None:
        self._limits = limits
        self._total_bytes: int | None = None
        self._on_progress = on_progress
        self._place = place
        self._ends_at = time.monotonic() + limits.max_seconds
        self.done_bytes = 0

    @property
    def seconds_left(self) -> float:
        """Time until the fetch is stopped."""
        return self._ends_at - time.monotonic()

    def expect(self, total_bytes: int | None) -> None:
        """Take note of what the source says it has; `None` if it says nothing.

        Raises:
            InvalidInput: `upload_too_large`.
        """
        if total_bytes is not None and total_bytes > self._limits.max_bytes:
            raise oversize(self._limits.max_bytes, place=self._place)
        self._total_bytes = total_bytes

    def count(self, num_bytes: int) -> None:
        """Take note of a piece, before it is written.

        Raises:
            InvalidInput: `upload_too_large` or `fetch_too_slow`.
            RequestAborted: the listener wants no more.
        """
        self.done_bytes += num_bytes
        if self.done_bytes > self._limits.max_bytes:
            raise oversize(self._limits.max_bytes, place=self._place)
        if self.seconds_left < 0:
            raise self.too_slow()
        self._on_progress(self.done_bytes, self._total_bytes)

    def forget(self, num_bytes: int) -> None:
        """Take back a count: these bytes were thrown away and will come again."""
        self.done_bytes -= num_bytes

    def too_slow(self) -> InvalidInput:
        """The refusal of a source that takes too long. Final: a stranger's server must not hold the ingest for ever."""
        return InvalidInput(
            f"The files did not arrive within {self._limits.max_seconds:g} seconds.",
            code="fetch_too_slow",
            remedy="Upload the files, or have the operator raise HILORA_REGISTRY_MAX_FETCH_SECONDS.",
            place=self._place,
        )


def oversize(max_bytes: int, *, place: str) -> InvalidInput:
    """The refusal of an adapter above the limit."""
    return InvalidInput(
        f"The adapter is larger than {max_bytes} bytes.",
        code="upload_too_large",
        remedy="Reduce the rank, or have the operator raise HILORA_REGISTRY_MAX_UPLOAD_BYTES.",
        place=place,
    )
