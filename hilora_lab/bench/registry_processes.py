"""A registry as it is deployed, for a benchmark: Redis, registry, ingest process and router, each its own process."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import grpc
import httpx

from hilora.errors import Unavailable
from hilora_lab.bench.registry_router import RouterOrder
from services.common.rpc_client import open_channel
from services.standalone.redis_process import find_redis_server

_START_SECONDS = 300.0


class RegistryProcesses:
    """Redis, registry and ingest process on a folder; an asynchronous context manager.

    Args:
        folder: of everything they keep.
        base_model: folder of the base that the adapters fit.
        encoder: folder of the sentence encoder.
        incoming: folder that adapters are ingested from.
    """

    def __init__(self, *, folder: Path, base_model: Path, encoder: Path, incoming: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._key = secrets.token_hex(16)
        rpc_port, rest_port = _free_port(), _free_port()
        self.address = f"127.0.0.1:{rpc_port}"
        settings = {
            "RPC_PORT": str(rpc_port),
            "REST_PORT": str(rest_port),
            "BASE_MODEL": str(base_model),
            "DATA_DIR": str(folder / "data"),
            "REDIS_URL": f"unix://{self._socket}?db=0",
            "ENCODER": str(encoder),
            "ADMIN_API_KEY": self._key,
            "ALLOWED_LOCAL_DIRS": json.dumps([str(incoming)]),
            "MAX_KEPT_CHANGES": "100000",
            "LOG_LEVEL": "WARNING",
        }
        self._environment = [f"HILORA_REGISTRY_{name}={value}" for name, value in settings.items()]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.channel: grpc.aio.Channel = open_channel(self.address)
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{rest_port}",
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=60.0,
            trust_env=False,
        )

    @property
    def artifacts(self) -> Path:
        """Where adapter versions are stored."""
        return self._folder / "data" / "artifacts"

    async def __aenter__(self) -> Self:
        redis = [find_redis_server(), "--port", "0", "--unixsocket", str(self._socket), "--save", ""]
        self._start("redis", [*redis, "--dir", str(self._folder), "--appendonly", "yes"])
        self._start("registry", ["env", *self._environment, sys.executable, "-m", "services.registry"])
        self._start("ingest", ["env", *self._environment, sys.executable, "-m", "services.registry.ingest_worker"])
        deadline = time.monotonic() + _START_SECONDS
        while not await self._is_ready():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                await self.__aexit__()
                raise Unavailable(
                    "The registry of the benchmark did not start.",
                    code="registry_process_ended",
                    remedy="See what it says when it is started alone: python -m services.registry.",
                )
            await asyncio.sleep(0.2)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._http.aclose()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()

    async def ingest(self, name: str, folder: Path) -> None:
        """Have a folder ingested under a name.

        Raises:
            Unavailable: `ingest_refused`.
        """
        answer = await self._http.post("/v1/adapters", json={"name": name, "source": {"path": str(folder)}})
        if answer.status_code != HTTPStatus.ACCEPTED:
            raise Unavailable(f"The registry refused {name}: {answer.text[:500]}", code="ingest_refused")

    async def _is_ready(self) -> bool:
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    def _start(self, name: str, command: list[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))  # noqa: S603  (our own)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RouterProcess:
    """A `registry_router` and what it says; an asynchronous context manager.

    Args:
        order: what it is started with.
        log: file of its standard error.
    """

    def __init__(self, order: RouterOrder, *, log: Path) -> None:
        self._order = order
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hilora_lab.bench.registry_router",
                json.dumps(asdict(self._order)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=64 * 1024 * 1024,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def said(self) -> dict[str, Any]:
        """The next thing it says.

        Raises:
            Unavailable: `router_process_ended`.
        """
        assert self._process is not None, "entered"
        assert self._process.stdout is not None, "a pipe was asked for"
        line = await self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-500:]
            raise Unavailable(f"The router's process ended: {tail}", code="router_process_ended")
        return json.loads(line)

    async def phase(self) -> dict[str, Any]:
        """End a phase of routing and take what was measured in it."""
        assert self._process is not None, "entered"
        assert self._process.stdin is not None, "a pipe was asked for"
        self._process.stdin.write(b"phase\n")
        await self._process.stdin.drain()
        return await self.said()
