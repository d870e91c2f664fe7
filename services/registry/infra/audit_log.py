"""The audit log as files of JSON lines.

    audit/audit-00000001.jsonl      the oldest that is kept; no longer written
          audit-00000002.jsonl      the newest; grows until it reaches its size
          .lock                     held while a line is written

Several processes append: the lock makes each line whole and lets one of them begin the next file. An event counts once
`append` returned: its bytes are on the disk. A line that a power cut tore is ended by the next writer and passed over
by readers, so that it costs nothing but itself. Files are never changed otherwise.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from hilora.errors import InvalidInput
from services.common.log import get_logger
from services.registry.audit import AuditEvent, AuditPage
from services.registry.infra.durable import flush_file

_log = get_logger(__name__)

_EVENT = TypeAdapter(AuditEvent)
_FILE_NAME = re.compile(r"audit-(\d{8})\.jsonl")
_CURSOR = re.compile(r"(\d{1,8})-(\d{1,15})")
_BLOCK_BYTES = 64 * 1024


class DiskAuditLog:
    """See `AuditLog`.

    Args:
        root: folder of the files; created if missing.
        max_file_bytes: a file that has grown to this is followed by the next.
        max_files: how many files are kept; the oldest leave.
    """

    def __init__(self, root: Path, *, max_file_bytes: int, max_files: int) -> None:
        self._root = root
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        root.mkdir(parents=True, exist_ok=True)

    def append(self, event: AuditEvent) -> None:
        """See `AuditLog.append`."""
        line = _EVENT.dump_json(event) + b"\n"
        with self._locked():
            path = self._file_to_write()
            is_new = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
                _write_all(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if is_new:
                flush_file(self._root)
                self._drop_oldest()

    def page(self, *, before: str | None, limit: int) -> AuditPage:
        """See `AuditLog.page`. A cursor names the file and the place of the oldest event shown."""
        found: list[AuditEvent] = []
        cursor: str | None = None
        for number, offset, line in self._lines_before(before):
            if len(found) == limit:
                return AuditPage(events=tuple(found), next_cursor=cursor)
            try:
                found.append(_EVENT.validate_json(line))
            except ValueError:
                _log.warning("audit_line_unreadable", file=number, offset=offset)
            cursor = f"{number}-{offset}"
        return AuditPage(events=tuple(found), next_cursor=None)

    def _lines_before(self, cursor: str | None) -> Iterator[tuple[int, int, bytes]]:
        end: int | None = None
        numbers = self._numbers()
        if cursor is not None:
            match = _CURSOR.fullmatch(cursor)
            if match is None:
                raise InvalidInput(
                    f"{cursor[:64]!r} is no cursor of the audit log.",
                    code="invalid_cursor",
                    remedy="Use next_cursor of the page before.",
                    place="before",
                )
            last, end = int(match[1]), int(match[2])
            numbers = [number for number in numbers if number <= last]
            if not numbers or numbers[-1] != last:
                end = None
        for number in reversed(numbers):
            try:
                for offset, line in _lines_backwards(self._path(number), end):
                    yield number, offset, line
            except FileNotFoundError:
                return  # it was the oldest, and left in between
            end = None

    def _file_to_write(self) -> Path:
        number = max(self._numbers(), default=1)
        path = self._path(number)
        if path.exists() and path.stat().st_size >= self._max_file_bytes:
            path = self._path(number + 1)
        return path

    def _drop_oldest(self) -> None:
        for number in self._numbers()[: -self._max_files]:
            self._path(number).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        matches = (_FILE_NAME.fullmatch(path.name) for path in self._root.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, number: int) -> Path:
        return self._root / f"audit-{number:08d}.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _lines_backwards(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file before a place, last first, each with where it begins; reads no more than is asked for."""
    with path.open("rb") as stream:
        position = stream.seek(0, os.SEEK_END) if end is None else end
        tail = b""
        while position:
            start = max(0, position - _BLOCK_BYTES)
            stream.seek(start)
            block = stream.read(position - start) + tail
            position = start
            # What precedes the first line break may begin in the block before.
            first_break = block.find(b"\n")
            tail, body = (block, b"") if first_break < 0 else (block[: first_break + 1], block[first_break + 1 :])
            if position == 0:
                tail, body = b"", block
            offset = start + len(tail)
            placed: list[tuple[int, bytes]] = []
            for line in body.splitlines(keepends=True):
                if line.strip():
                    placed.append((offset, line))
                offset += len(line)
            yield from reversed(placed)
