"""The data folder: where things lie in it, and the lock that gives it one owner."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import IO

from hilora.errors import Conflict

_MAX_SOCKET_PATH_BYTES = 100
"""Linux keeps 107 bytes and a final zero for a socket's path (unix(7)); a few are left for a temporary suffix."""


class DataFolder:
    """Places in one data folder, and the right to use them.

    Args:
        path: the folder; `acquire` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock_file: IO[str] | None = None

    @property
    def registry(self) -> Path:
        """Artifacts, registrations and staged uploads."""
        return self.path / "registry"

    @property
    def redis(self) -> Path:
        """Redis's append-only file. Can be deleted while nothing runs: the catalogue is rebuilt."""
        return self.path / "redis"

    @property
    def logs(self) -> Path:
        """One log file per child process."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """Records of running children, the socket and the lock: worthless once nothing runs."""
        return self.path / "run"

    @property
    def socket(self) -> Path:
        """Redis's socket: in the folder, or under the temporary folder if its path were too long for a socket."""
        inside = self.run / "redis.sock"
        if len(os.fsencode(inside)) <= _MAX_SOCKET_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"hilora-{os.getuid()}-{digest}" / "redis.sock"

    def acquire(self) -> None:
        """Make the folder and become its owner until `release` or the end of the process.

        Raises:
            Conflict: `data_dir_in_use`, if another process owns it.
            OSError: it cannot be written.
        """
        for folder in (self.path, self.registry, self.redis, self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        lock_file = (self.run / "owner.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock_file.seek(0)
            owner = lock_file.read().strip() or "unknown"
            lock_file.close()
            raise Conflict(
                f"The data folder {self.path} is in use by process {owner}.",
                code="data_dir_in_use",
                remedy="Stop that process, or give another --data-dir.",
                place=str(self.path),
            ) from error
        lock_file.seek(0)
        lock_file.truncate()
        lock_file.write(str(os.getpid()))
        lock_file.flush()
        self._lock_file = lock_file
        self._make_socket_folder()

    def release(self) -> None:
        """Let others own the folder; nothing happens if it is not ours."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _make_socket_folder(self) -> None:
        """A folder that nobody else can put a socket into."""
        folder = self.socket.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise Conflict(
                f"{folder} belongs to somebody else.",
                code="unsafe_socket_folder",
                remedy="Remove it, or give a --data-dir with a shorter path.",
                place=str(folder),
            )
        folder.chmod(0o700)
