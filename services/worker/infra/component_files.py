"""The disk tier: component files in a local folder, by checksum, so that a worker that starts again, or whose main
memory is small, does not ask the registry for what it had.

Several processes may share a folder. A file appears complete or not at all, is checked whenever it is read, and may
vanish at any time; a folder that cannot be used makes the tier useless, never a request fail. Whatever else lies in the
folder is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from pathlib import Path

from services.common.log import get_logger
from services.worker.ports import ComponentTierStats

_log = get_logger(__name__)

_SUFFIX = ".safetensors"
_PART_PREFIX = "components-"
_PART_SUFFIX = ".part"
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_STALE_PART_SECONDS = 3600.0
"""An unfinished file this old was left by a process that ended."""
_STOCK_SECONDS = 5.0
"""How old a count of the files may be: routers ask for it every second, and other processes change the folder."""


class ComponentFiles:
    """Files of at most so many bytes together, the least recently used out first. May be called from any thread.

    Args:
        folder: where they are; made if need be.
        capacity_bytes: of all files; one that is larger is not kept.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int) -> None:
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._num_hits = 0
        self._num_misses = 0
        self._num_evictions = 0
        self._num_damaged = 0
        self._lock = threading.Lock()
        # When the files were last counted, their number and bytes.
        self._counted: tuple[float, int, int] | None = None
        # Apart from the counters': a reader must not wait for the disk behind a writer.
        self._writing = threading.Lock()

    def stats(self) -> ComponentTierStats:
        """Files and totals now; what other processes changed in the last seconds may be missing. Reads the folder."""
        num_files, used_bytes = self._stock()
        with self._lock:
            return ComponentTierStats(
                capacity_bytes=self._capacity_bytes,
                used_bytes=used_bytes,
                num_adapters=num_files,
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_evictions=self._num_evictions,
                num_damaged=self._num_damaged,
            )

    def used_bytes(self) -> int:
        """Bytes of the files that are there now."""
        return sum(num_bytes for _, num_bytes, _ in self._files())

    def read(self, sha256: str) -> bytes | None:
        """The content with that checksum, or None."""
        path = self._path(sha256)
        if path is None:
            self._count(num_misses=1)
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            self._count(num_misses=1)
            return None
        except OSError as error:
            _log.warning("disk_tier_unreadable", path=str(path), error=str(error))
            self._count(num_misses=1)
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            _log.warning("disk_tier_damaged_file", path=str(path))
            self._unlink(path)
            self._count(num_misses=1, num_damaged=1)
            return None
        # Forbidden where the file is another user's, who then does not see that it is in use.
        with contextlib.suppress(OSError):
            os.utime(path)
        self._count(num_hits=1)
        return content

    def write(self, sha256: str, content: bytes) -> None:
        """Keep content that was found to have that checksum."""
        path = self._path(sha256)
        if path is None or len(content) > self._capacity_bytes:
            return
        try:
            # Two threads that made room at the same time would both take it.
            with self._writing:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._clear_parts()
                if not self._make_room(len(content)):
                    return
                self._write(path, content)
                # Another process may have taken the same room: whoever comes last sees all files.
                self._make_room(0)
        except OSError as error:
            _log.warning("disk_tier_unwritable", folder=str(self._folder), error=str(error))

    def forget(self, sha256: str) -> int:
        """Remove a file that is of no use any more; returns its bytes."""
        path = self._path(sha256)
        return 0 if path is None else self._unlink(path)

    def check_integrity(self) -> None:
        """AssertionError unless every file is what its name promises, within the capacity."""
        for path, _, _ in self._files():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem, f"{path} is damaged"
        assert self.used_bytes() <= self._capacity_bytes, "more bytes than the folder may hold"

    def _path(self, sha256: str) -> Path | None:
        """Where a file belongs; None if that is no checksum. It comes from the catalogue, over the network: as part of
        a path it could name any file of this machine."""
        return self._folder / f"{sha256}{_SUFFIX}" if _CHECKSUM.fullmatch(sha256) else None

    def _stock(self) -> tuple[int, int]:
        """Number and bytes of the files, counted not long ago."""
        counted, now = self._counted, time.monotonic()
        if counted is None or now - counted[0] > _STOCK_SECONDS:
            sizes = [num_bytes for _, num_bytes, _ in self._files()]
            counted = self._counted = (now, len(sizes), sum(sizes))
        return counted[1:]

    def _count(self, *, num_hits: int = 0, num_misses: int = 0, num_evictions: int = 0, num_damaged: int = 0) -> None:
        with self._lock:
            self._num_hits += num_hits
            self._num_misses += num_misses
            self._num_evictions += num_evictions
            self._num_damaged += num_damaged

    def _write(self, path: Path, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(prefix=_PART_PREFIX, suffix=_PART_SUFFIX, dir=self._folder)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._counted = None
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        # The name, too, is to be there after a power cut.
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the least recently used files; False if those that are left, which may be another user's, leave too
        little. The folder is read each time: other processes change it as well, and two that remove the same files
        remove them once."""
        files = sorted(self._files(), key=lambda file: file[2])
        surplus = sum(size for _, size, _ in files) + num_bytes - self._capacity_bytes
        for path, size, _ in files:
            if surplus <= 0:
                break
            if self._unlink(path):
                self._count(num_evictions=1)
            elif path.exists():
                continue
            surplus -= size
        return surplus <= 0

    def _clear_parts(self) -> None:
        for part in self._folder.glob(f"{_PART_PREFIX}*{_PART_SUFFIX}"):
            with contextlib.suppress(OSError):
                if part.stat().st_mtime < time.time() - _STALE_PART_SECONDS:
                    part.unlink()

    def _unlink(self, path: Path) -> int:
        try:
            num_bytes = path.stat().st_size
            path.unlink()
        except OSError:
            return 0
        self._counted = None
        return num_bytes

    def _files(self) -> list[tuple[Path, int, float]]:
        """Path, bytes and time of the last use of each file."""
        files: list[tuple[Path, int, float]] = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if not _CHECKSUM.fullmatch(path.stem):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((path, status.st_size, status.st_mtime))
        return files
