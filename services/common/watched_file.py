"""A file whose content is read again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hilora.errors import InvalidInput
from services.common.log import get_logger

_log = get_logger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5

_ContentT = TypeVar("_ContentT")


class WatchedFile(Generic[_ContentT]):
    """What a file says now. Looked at when asked for, at most twice a second.

    A file that became unreadable or malformed keeps its last content: a slip of the pen must not lock everybody out,
    and is logged each time it is seen.

    Args:
        path: the file.
        read: makes its content of it; raises InvalidInput where it cannot.
        beside: further files that the content is made of.

    Raises:
        InvalidInput: whatever `read` raises at the start.
    """

    def __init__(self, path: Path, read: Callable[[Path], _ContentT], *, beside: Sequence[Path] = ()) -> None:
        self._path = path
        self._beside = tuple(beside)
        self._read = read
        self._looked_at = time.monotonic()
        # Before the content: a change in between is seen at the next look.
        self._stamp = self._stamp_of_file()
        self._content = read(path)

    def current(self) -> _ContentT:
        """The content; the same object until it changes. Never blocks for long."""
        now = time.monotonic()
        if now - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            self._reread()
        return self._content

    def _reread(self) -> None:
        stamp = self._stamp_of_file()
        if stamp == self._stamp:
            return
        try:
            self._content = self._read(self._path)
        except InvalidInput as error:
            _log.error("file_unreadable", path=str(self._path), reason=error.message)
            return
        self._stamp = stamp
        _log.info("file_reloaded", path=str(self._path))

    def _stamp_of_file(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(path) for path in (self._path, *self._beside))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever a file does; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
