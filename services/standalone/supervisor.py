"""Keeps one child process alive: starts it, restarts it with growing pauses, ends it with us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hilora.errors import Unavailable
from services.common.log import get_logger
from services.common.tasks import end_tasks
from services.standalone.process_record import end_group, end_recorded, group_members, write_record

_log = get_logger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_HEALTHY_AFTER_SECONDS = 30.0
"""A child that lived this long starts again without a pause's history."""
_POLL_SECONDS = 0.02
_LEFTOVER_GRACE_SECONDS = 5.0
_LOG_TAIL_BYTES = 2000


class SupervisedProcess:
    """A child process that is there whenever its owner is.

    Args:
        name: names its record and its log file.
        command: absolute program and arguments.
        environment: its whole environment; None passes ours on.
        run_folder: where its record lies.
        log_folder: where its output is appended to `<name>.log`.
        is_ready: polled after every start until true; None takes a started child for a ready one.
        ready_seconds: how long that may take.
    """

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        run_folder: Path,
        log_folder: Path,
        is_ready: Callable[[], Awaitable[bool]] | None = None,
        ready_seconds: float = 30.0,
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._environment = None if environment is None else dict(environment)
        self._record_path = run_folder / f"{name}.json"
        self._log_path = log_folder / f"{name}.log"
        self._is_ready = is_ready
        self._ready_seconds = ready_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running child, which leads its own process group."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """End what a killed predecessor left, start the child, wait until it is ready.

        Raises:
            Unavailable: `child_failed`, if it ends first or is not ready in time.
        """
        if await asyncio.to_thread(end_recorded, self._record_path, grace_seconds=_LEFTOVER_GRACE_SECONDS):
            _log.warning("leftover_child_ended", child=self._name)
        try:
            await self._spawn()
            await self._wait_until_ready()
        except BaseException:
            await self.stop(grace_seconds=0)
            raise
        self._watch = asyncio.create_task(self._keep_alive(), name=f"supervise-{self._name}")

    async def stop(self, *, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL after `grace_seconds`; returns when the whole process group is gone."""
        if self._watch is not None:
            await end_tasks(self._watch)
            self._watch = None
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), timeout=max(grace_seconds, 0.1))
        # Whatever it left in its group, or the child itself if it did not listen.
        if group_members(process.pid):
            await asyncio.to_thread(end_group, process.pid, grace_seconds=0)
        await process.wait()
        self._record_path.unlink(missing_ok=True)

    async def _spawn(self) -> None:
        with self._log_path.open("ab") as log_file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.standalone.tethered_exec",
                str(os.getpid()),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env=self._environment,
                # A group of its own: Ctrl-C reaches us alone, and we end it in order.
                start_new_session=True,
            )
        write_record(self._record_path, self._process.pid)
        _log.info("child_started", child=self._name, pid=self._process.pid)

    async def _wait_until_ready(self) -> None:
        assert self._process is not None
        if self._is_ready is None:
            return
        deadline = time.monotonic() + self._ready_seconds
        while not await self._is_ready():
            if self._process.returncode is not None:
                raise self._failure(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {self._ready_seconds:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def _keep_alive(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            assert self._process is not None
            started = time.monotonic()
            status = await self._process.wait()
            pause = _FIRST_PAUSE_SECONDS if time.monotonic() - started > _HEALTHY_AFTER_SECONDS else pause
            _log.error("child_ended", child=self._name, status=status, restart_in_seconds=pause)
            await asyncio.to_thread(end_group, self._process.pid, grace_seconds=_LEFTOVER_GRACE_SECONDS)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                await self._spawn()
                await self._wait_until_ready()
            except (Unavailable, OSError) as error:
                _log.error("child_restart_failed", child=self._name, reason=str(error))
                await self._end_unready()

    async def _end_unready(self) -> None:
        """A child that runs without becoming ready is as good as dead: the next round starts another."""
        if self._process is not None and self._process.returncode is None:
            await asyncio.to_thread(end_group, self._process.pid, grace_seconds=_LEFTOVER_GRACE_SECONDS)

    def _failure(self, what: str) -> Unavailable:
        with suppress(OSError), self._log_path.open("rb") as log_file:
            log_file.seek(max(0, self._log_path.stat().st_size - _LOG_TAIL_BYTES))
            tail = log_file.read().decode(errors="replace").strip().splitlines()[-5:]
            what += ": " + " | ".join(tail) if tail else ""
        return Unavailable(
            f"The child process {self._name!r} {what}.",
            code="child_failed",
            remedy=f"Read {self._log_path}.",
            place=self._name,
        )
