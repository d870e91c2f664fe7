"""A router in a process of its own, which can be killed; its encoder is the tests' own, which needs no model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from services.common.lifecycle import run_until_signal
from services.router.bootstrap import build_router
from services.router.settings import RouterSettings
from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.fakes.router_encoder import HashEncoder

ROOT = Path(__file__).resolve().parents[2]


class RouterProcess:
    """Started again, it has the same port.

    Args:
        log: file for what it prints.
        settings: fields of `RouterSettings`, as environment variables hold them.
    """

    def __init__(self, log: Path, **settings: Any) -> None:
        self._log = log
        self._port = free_port()
        ports = {"rest_port": self._port, "rpc_port": free_port()}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HILORA_")},
            "OMP_NUM_THREADS": "1",
            **{f"HILORA_ROUTER_{name.upper()}": str(value) for name, value in {**settings, **ports}.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its HTTP door."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin to start."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.builders.router_process"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def ready(self, *, timeout_seconds: float = 60.0) -> None:
        """Return once it would answer a completion."""
        async with asyncio.timeout(patient(timeout_seconds)), httpx.AsyncClient(trust_env=False) as client:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self._log.read_text(errors="replace")[-4000:]
                try:
                    if (await client.get(f"{self.url}/readyz", timeout=patient(5))).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        """End it as the loss of its machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def main() -> None:
    """Serve until SIGTERM, by the settings in the environment."""
    asyncio.run(run_until_signal(build_router(RouterSettings(), load_encoder=HashEncoder), grace_seconds=0))


if __name__ == "__main__":
    main()
