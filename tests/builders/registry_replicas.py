"""Two real registry processes and two real ingest processes on one Redis and one data folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from services.registry.settings import RegistrySettings
from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.builders.redis_server import RedisServer
from tests.builders.registry_process import ROOT, TESTBED, shipped_files

_START_SECONDS = 300.0


class RegistryReplicas:
    """Replicas that can be killed and started again, with a client for each.

    Args:
        directory: folder of everything they keep.
        num_replicas: registries; as many ingest processes run beside them.
    """

    def __init__(self, directory: Path, *, num_replicas: int = 2) -> None:
        self._directory = directory
        self._redis = RedisServer(directory / "redis", keeps_data=True)
        self.settings = [
            RegistrySettings(
                rpc_port=free_port(),
                rest_port=free_port(),
                base_model=str(TESTBED / "base"),
                data_dir=directory / "data",
                redis_url=SecretStr(self._redis.url),
                job_lease_seconds=3,
                recovery_interval_seconds=0.5,
                watch_heartbeat_seconds=0.3,
                maintenance_interval_seconds=1.0,
                keep_versions=50,
                allow_anonymous_admin=True,
            )
            for _ in range(num_replicas)
        ]
        self.clients = [
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.rest_port}", trust_env=False, timeout=patient(60))
            for settings in self.settings
        ]
        self._registries: list[subprocess.Popen[bytes] | None] = [None] * num_replicas
        self._ingests: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start everything and wait until every registry is ready."""
        self._redis.start()
        self._ingests = [self._spawn("services.registry.ingest_worker", settings) for settings in self.settings]
        for idx in range(len(self.settings)):
            self.start_registry(idx)
        await asyncio.gather(*(self.ready(idx) for idx in range(len(self.settings))))

    async def stop(self) -> None:
        """Kill everything."""
        for client in self.clients:
            await client.aclose()
        for process in (*self._registries, *self._ingests):
            if process is not None:
                process.kill()
                process.wait()
        self._redis.close()

    def start_registry(self, idx: int) -> None:
        """Start one registry; returns at once."""
        self._registries[idx] = self._spawn("services.registry", self.settings[idx])

    def kill_registry(self, idx: int) -> None:
        """SIGKILL."""
        process = self._registries[idx]
        assert process is not None
        process.kill()
        process.wait()

    async def ready(self, idx: int) -> None:
        """Return once a registry answers."""
        deadline = time.monotonic() + patient(_START_SECONDS)
        while True:
            try:
                if (await self.clients[idx].get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.log
            await asyncio.sleep(0.1)

    @property
    def log(self) -> str:
        """The end of what all processes wrote."""
        return (self._directory / "processes.log").read_text(errors="replace")[-6000:]

    async def upload(self, idx: int, name: str, task: str, **form: str) -> httpx.Response:
        """Offer a shipped adapter to one replica."""
        return await self.clients[idx].post("/v1/adapters", data={"name": name, **form}, files=shipped_files(task))

    async def finished(self, idx: int, job_id: str, *, timeout_seconds: float = 300) -> dict[str, Any]:
        """A job once nothing is left to do, as one replica tells it."""
        deadline = time.monotonic() + patient(timeout_seconds)
        while True:
            job = (await self.clients[idx].get(f"/v1/jobs/{job_id}")).json()
            if job["state"] in {"READY", "QUARANTINED", "FAILED"}:
                return dict(job)
            assert time.monotonic() < deadline, f"{job}\n{self.log}"
            await asyncio.sleep(0.05)

    def _spawn(self, module: str, settings: RegistrySettings) -> subprocess.Popen[bytes]:
        with (self._directory / "processes.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env={**os.environ, **settings.to_environment()},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
