"""Traps: a process ends, or ends others, exactly at an operation that was named before.

A trap is a file. Whoever sets it writes down an operation and whom to kill; the process that watches it compares every
durable step it takes - on disk and in Redis - and springs the trap in the middle of its own work. Production code knows
nothing of it: the functions of `os`, `shutil` and redis-py are wrapped in the watching process alone.

Operations are texts: `mkdir <path>`, `fsync <path>`, `rename <path>` (the new name), `unlink <path>`, `rmtree <path>`,
`redis <command with its arguments>` and `redis pipeline <such commands>`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import redis.asyncio.client
import redis.client

ITSELF = 0
"""In the place of a process's id."""

_rename = os.rename
_POLL_SECONDS = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A point in a process's work."""

    what: str
    """What a person calls it."""
    operation: str
    """Regular expression of the operation's text."""
    is_before: bool
    """Whether the process gets there before or after the operation is done."""
    nth: int = 1
    """The how many-th such operation."""
    since: str = ""
    """Regular expression of an earlier operation: only what comes after it counts."""


class Trap:
    """A trap as the test sees it.

    Args:
        path: the file that a process watches.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sprung = path.with_suffix(".sprung")

    def set(self, moment: Moment, *, kills: Sequence[int]) -> None:
        """Have processes killed at the moment; `ITSELF` is the one that watches, whichever that will be."""
        self._sprung.unlink(missing_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps({**asdict(moment), "kills": list(kills), "set_at": time.time_ns()}))
        aside.replace(self.path)

    def clear(self) -> None:
        """Take it away."""
        self.path.unlink(missing_ok=True)
        self._sprung.unlink(missing_ok=True)

    @property
    def is_sprung(self) -> bool:
        """Whether the moment came."""
        return self._sprung.exists()


class Watch:
    """A trap as the watching process sees it.

    Args:
        trap: the file.
    """

    def __init__(self, trap: Path) -> None:
        self._trap = str(trap)
        self._sprung = str(trap.with_suffix(".sprung"))
        self._lock = threading.Lock()
        self._text = b""
        self._num_seen = 0
        self._counts = False

    def passes(self, operation: str, *, is_before: bool) -> None:
        """Say where the process is; does not return if the trap kills it."""
        text = self._read()
        if not text:
            return
        wanted: dict[str, Any] = json.loads(text)
        with self._lock:
            if text != self._text:
                self._text, self._num_seen, self._counts = text, 0, not wanted["since"]
            if not self._counts:
                self._counts = re.search(wanted["since"], operation, re.DOTALL) is not None
                return
            if wanted["is_before"] is not is_before or not re.search(wanted["operation"], operation, re.DOTALL):
                return
            self._num_seen += 1
            if self._num_seen != wanted["nth"]:
                return
            try:
                _rename(self._trap, self._sprung)
            except FileNotFoundError:
                return  # taken away meanwhile
            _kill(wanted["kills"])

    def _read(self) -> bytes:
        try:
            descriptor = os.open(self._trap, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.read(descriptor, 65536)
        finally:
            os.close(descriptor)


def watch(trap: Path) -> None:
    """Wrap what makes changes last, in this process and for good."""
    watching = Watch(trap)
    os.mkdir = _wrapped(watching, os.mkdir, "mkdir", place=0)
    os.fsync = _wrapped(watching, os.fsync, "fsync", place=0)
    os.rename = _wrapped(watching, os.rename, "rename", place=1)
    os.replace = _wrapped(watching, os.replace, "rename", place=1)
    os.unlink = _wrapped(watching, os.unlink, "unlink", place=0)
    shutil.rmtree = _wrapped(watching, shutil.rmtree, "rmtree", place=0)  # pyright: ignore[reportAttributeAccessIssue]
    _wrap_redis(watching)


def _wrapped(watching: Watch, function: Callable[..., Any], verb: str, *, place: int) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        subject = args[place]
        if isinstance(subject, int):
            subject = Path(f"/proc/self/fd/{subject}").readlink()
        operation = f"{verb} {os.fspath(subject)}"
        watching.passes(operation, is_before=True)
        result = function(*args, **kwargs)
        watching.passes(operation, is_before=False)
        return result

    return wrapper


def _wrap_redis(watching: Watch) -> None:
    blocking = redis.client.Redis.execute_command
    asynchronous = redis.asyncio.client.Redis.execute_command

    def execute(self: Any, *args: Any, **options: Any) -> Any:
        operation = _called(args)
        watching.passes(operation, is_before=True)
        result = blocking(self, *args, **options)
        watching.passes(operation, is_before=False)
        return result

    async def execute_async(self: Any, *args: Any, **options: Any) -> Any:
        operation = _called(args)
        watching.passes(operation, is_before=True)
        result = await asynchronous(self, *args, **options)
        watching.passes(operation, is_before=False)
        return result

    redis.client.Redis.execute_command = execute
    redis.asyncio.client.Redis.execute_command = execute_async  # pyright: ignore[reportAttributeAccessIssue]

    blocking_pipeline = redis.client.Pipeline.execute

    def execute_pipeline(self: Any, *args: Any, **options: Any) -> Any:
        operation = _called(("pipeline", *(word for command in self.command_stack for word in command[0])))
        watching.passes(operation, is_before=True)
        result = blocking_pipeline(self, *args, **options)
        watching.passes(operation, is_before=False)
        return result

    redis.client.Pipeline.execute = execute_pipeline  # pyright: ignore[reportAttributeAccessIssue]


def _called(args: Iterable[Any]) -> str:
    words = (word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in args)
    return f"redis {' '.join(words)}"


def _kill(pids: Sequence[int]) -> None:
    """End the processes; this one, if it is among them, last."""
    others = [pid for pid in pids if pid != ITSELF]
    for pid in others:
        os.kill(pid, signal.SIGKILL)
    while any(map(_is_running, others)):
        time.sleep(_POLL_SECONDS)
    if ITSELF in pids:
        os.kill(os.getpid(), signal.SIGKILL)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
