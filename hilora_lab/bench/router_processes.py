"""The processes of the router's benchmark: children that speak, and servers that are asked whether they are ready."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from hilora.errors import Unavailable

_LINE_BYTES = 64 * 1024 * 1024
_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SpeakingProcess:
    """A module of ours that says one JSON line at its start and answers every command with one; see `router_speech`.

    Args:
        module: what runs.
        arguments: its arguments.
        log: file of its standard error.
    """

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self.opening: dict[str, Any] = {}
        """What it said at its start."""

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_BYTES,
            )
        try:
            self.opening = await self._said()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None, "entered"
        return self._process.pid

    async def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises Unavailable: `bench_process_ended`."""
        assert self._process is not None, "entered"
        assert self._process.stdin is not None, "a pipe was asked for"
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._said()

    async def _said(self) -> dict[str, Any]:
        assert self._process is not None, "entered"
        assert self._process.stdout is not None, "a pipe was asked for"
        line = await self._process.stdout.readline()
        if not line:
            raise _ended(" ".join(self._command[1:3]), self._log)
        return json.loads(line)


class ServerProcess:
    """A server that is ready once a path of it answers with success; an asynchronous context manager.

    Args:
        command: what runs.
        port: of its HTTP door, on 127.0.0.1.
        ready_path: what is asked.
        environment: added to this process's own.
        log: file of everything it says.
    """

    def __init__(
        self, command: Sequence[str], *, port: int, ready_path: str, environment: Mapping[str, str], log: Path
    ) -> None:
        self._command = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
        self.port = port
        self._ready_path = ready_path
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None, "entered"
        return self._process.pid

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not await self._is_ready():
            if time.monotonic() > deadline or self._process.returncode is not None:
                await self.__aexit__()
                raise _ended(" ".join(self._command[-3:]), self._log)
            await asyncio.sleep(0.2)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _is_ready(self) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
                return (await client.get(f"http://127.0.0.1:{self.port}{self._ready_path}")).is_success
        except httpx.TransportError:
            return False


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What a process holds and has spent."""

    resident_bytes: int
    cpu_seconds: float


def process_use(pid: int) -> ProcessUse:
    """Of one process, without its children. Linux only."""
    folder = Path("/proc") / str(pid)
    # The name stands in parentheses and may hold anything.
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return ProcessUse(
        resident_bytes=int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ended(name: str, log: Path) -> Unavailable:
    tail = log.read_text(encoding="utf-8", errors="replace")[-1000:]
    return Unavailable(
        f"A process of the benchmark ended or did not get ready ({name}): {tail}", code="bench_process_ended"
    )
