"""The registry in the test's process with a real Redis and a real ingest process beside it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from services.registry.bootstrap import RegistryService, build_registry
from services.registry.settings import RegistrySettings
from tests.builders.patience import patient
from tests.builders.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
TESTBED = ROOT / "examples" / "testbed"


def shipped_files(task: str) -> list[tuple[str, tuple[str, bytes]]]:
    """A shipped adapter as the parts of an upload."""
    folder = TESTBED / "adapters" / task
    texts = (f"{task} number {number}" for number in range(5))
    samples = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    return [
        ("files", ("adapter_config.json", (folder / "adapter_config.json").read_bytes())),
        ("files", ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes())),
        ("samples", ("samples.jsonl", samples)),
    ]


class RegistryProcesses:
    """Redis, ingest process and registry service, each of which can be killed and started again.

    Args:
        directory: folder of everything they keep.
        settings: what differs from the tests' usual settings.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.redis = RedisServer(directory / "redis", keeps_data=True)
        usual: dict[str, Any] = {
            "rpc_port": 0,
            "rest_port": 0,
            "base_model": str(TESTBED / "base"),
            "data_dir": directory / "data",
            "redis_url": SecretStr(self.redis.url),
            "job_lease_seconds": 1.5,
            "recovery_interval_seconds": 0.3,
            "watch_heartbeat_seconds": 0.3,
            "allowed_local_dirs": (TESTBED,),
            "exit_with_parent": True,
            "allow_anonymous_admin": True,
        }
        self.settings = RegistrySettings(**{**usual, **settings})
        self._log = directory / "ingest.log"
        self._ingest: subprocess.Popen[bytes] | None = None
        self.service: RegistryService | None = None
        self.client = httpx.AsyncClient()

    async def start(self) -> None:
        """Start all three."""
        self.redis.start()
        self.start_ingest()
        await self.start_service()

    async def stop(self) -> None:
        """Stop all three."""
        await self.stop_service()
        self.kill_ingest()
        self.redis.close()

    async def start_service(self) -> None:
        """Start the registry service in this process."""
        self.service = build_registry(self.settings)
        await self.service.start()
        self.client = httpx.AsyncClient(
            base_url=f"http://{self.service.rest_address}", trust_env=False, timeout=patient(30)
        )

    async def stop_service(self) -> None:
        """Stop it."""
        await self.client.aclose()
        if self.service is not None:
            await self.service.stop(grace_seconds=0.2)
            self.service = None

    def start_ingest(self) -> None:
        """Start the ingest process; it takes jobs some seconds later."""
        with self._log.open("ab") as log:
            self._ingest = subprocess.Popen(
                [sys.executable, "-m", "services.registry.ingest_worker"],
                env={**os.environ, **self.settings.to_environment()},
                cwd=ROOT,
                stderr=log,
                stdout=log,
            )

    @property
    def ingest_pid(self) -> int:
        """The ingest process that runs."""
        assert self._ingest is not None, "no ingest process was started"
        return self._ingest.pid

    def kill_ingest(self) -> None:
        """SIGKILL."""
        if self._ingest is not None:
            self._ingest.kill()
            self._ingest.wait()
            self._ingest = None

    @property
    def log(self) -> str:
        """Everything the ingest process wrote."""
        return self._log.read_text(errors="replace")

    async def upload(self, name: str, task: str | None = None, **form: str) -> str:
        """Upload a shipped adapter; returns the job's id."""
        answer = await self.client.post("/v1/adapters", data={"name": name, **form}, files=shipped_files(task or name))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """What the registry says about a job."""
        answer = await self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def finished(self, job_id: str, *, timeout_seconds: float = 60) -> dict[str, Any]:
        """A job once it is over."""
        deadline = time.monotonic() + patient(timeout_seconds)
        while (job := await self.job(job_id))["state"] not in {"READY", "FAILED", "CANCELLED"}:
            assert time.monotonic() < deadline, f"{job}\n{self.log[-3000:]}"
            await asyncio.sleep(0.02)
        return job

    async def names(self) -> list[str]:
        """Names in the catalogue."""
        return [entry["name"] for entry in (await self.client.get("/v1/adapters")).json()["data"]]
