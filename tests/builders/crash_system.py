"""Registry, ingest process and Redis as processes of their own, to be killed at chosen moments and started again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from services.registry.settings import RegistrySettings
from tests.builders.archives import adapter_files, samples_bytes, weights_bytes
from tests.builders.crash_process import start_process
from tests.builders.crash_trap import ITSELF, Moment, Trap
from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.builders.redis_server import RedisServer

_T = TypeVar("_T")

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_TERMINAL = frozenset({"READY", "QUARANTINED", "FAILED", "CANCELLED"})


class CrashSystem:
    """The three processes.

    Args:
        directory: folder of everything they keep.
        settings: of the registry, besides those that a test of crashes needs.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._directory = directory
        self.data_dir = directory / "data"
        self._redis_dir = directory / "redis"
        self._redis = RedisServer(self._redis_dir, keeps_data=True)
        self.settings = RegistrySettings(
            rpc_port=free_port(),
            rest_port=free_port(),
            base_model="tiny",
            data_dir=self.data_dir,
            redis_url=SecretStr(self._redis.url),
            job_lease_seconds=1.0,
            recovery_interval_seconds=0.1,
            maintenance_interval_seconds=0.5,
            watch_heartbeat_seconds=0.3,
            allow_anonymous_admin=True,
            **settings,
        )
        self.traps = {role: Trap(directory / f"{role}.trap") for role in ("registry", "ingest")}
        self._processes: dict[str, ForkServerProcess] = {}
        self._admission = self.settings.admission
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.rest_port}", trust_env=False, timeout=patient(_WAIT_SECONDS)
        )

    @property
    def log(self) -> str:
        """The end of what the processes wrote."""
        return (self._directory / "processes.log").read_text(errors="replace")[-6000:]

    def start(self, *, admission: str | None = None) -> None:
        """Start whatever does not run; returns once the registry answers.

        Args:
            admission: the policy for new versions, if it is another one than before.
        """
        if admission is not None and admission != self._admission:
            self._admission = admission
            self.kill("ingest")
        for trap in self.traps.values():
            trap.clear()
        self.restart()
        self.until(self._is_ready, "the registry is ready")

    def restart(self) -> None:
        """Start whatever does not run; returns at once."""
        if not self._redis.is_running:
            self._redis.start()
        for role in self.traps:
            if not self.is_running(role):
                self._start_process(role)

    def stop(self) -> None:
        """Kill everything."""
        self.http.close()
        for role in self.traps:
            self.kill(role)
        self._redis.close()

    def kill(self, role: str) -> None:
        """SIGKILL."""
        process = self._processes.get(role)
        if process is not None:
            process.kill()
            process.join()

    def is_running(self, role: str) -> bool:
        """Whether a process runs."""
        if role == "redis":
            return self._redis.is_running
        return role in self._processes and self._processes[role].is_alive()

    def set_trap(self, role: str, moment: Moment, *, victims: tuple[str, ...]) -> None:
        """Have `victims` killed when the process `role` comes to a moment; that process need not run yet."""
        kills = [ITSELF if victim == role else self._pid(victim) for victim in victims]
        self.traps[role].set(moment, kills=kills)

    def fell(self, role: str, victims: tuple[str, ...]) -> bool:
        """Whether the trap in the process `role` is sprung, and all victims are dead."""
        return self.traps[role].is_sprung and not any(map(self.is_running, victims))

    def lose_redis_data(self) -> None:
        """Remove everything that the dead Redis had written."""
        assert not self._redis.is_running
        shutil.rmtree(self._redis_dir)

    def until(self, condition: Callable[[], _T | None], what: str) -> _T:
        """The first true value of a condition."""
        deadline = time.monotonic() + patient(_WAIT_SECONDS)
        while not (value := condition()):
            assert time.monotonic() < deadline, f"never: {what}\n{self.log}"
            time.sleep(_POLL_SECONDS)
        return value

    def upload(self, name: str, *, seed: int, cut: bool = False, **form: str) -> httpx.Response:
        """Offer an adapter; its content follows from `seed`. Raises httpx.TransportError where the answer is lost.

        Args:
            name: what it is to be called.
            seed: equal ones make equal adapters.
            cut: kill the registry in the middle of the body.
            form: further fields.
        """
        contents = adapter_files(weights=weights_bytes(seed=seed), samples=samples_bytes(*_texts(name, 3)))
        files = [("files", item) for item in contents.items()]
        whole = self.http.build_request("POST", "/v1/adapters", data={"name": name, **form}, files=files)
        if not cut:
            return self.http.send(whole)
        known = self._uploads()
        body = self._cut_body(whole.read(), known=known)
        return self.http.post("/v1/adapters", content=body, headers={"content-type": whole.headers["content-type"]})

    def add_samples(self, name: str) -> httpx.Response:
        """Offer two more sample texts."""
        return self.http.post(f"/v1/adapters/{name}/samples", json={"samples": _texts(f"more {name}", 2)})

    def job(self, job_id: str) -> dict[str, Any] | None:
        """What the registry says about a job; None if it knows of none, as after Redis lost its data."""
        answer = self.http.get(f"/v1/jobs/{job_id}")
        return None if answer.status_code == 404 else dict(answer.raise_for_status().json())

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs."""
        return list(self.http.get("/v1/jobs").raise_for_status().json()["data"])

    def finished(self, accepted: httpx.Response) -> dict[str, Any]:
        """The job of an accepted submission once it is over."""
        assert accepted.status_code == 202, accepted.text
        job_id = accepted.json()["job_id"]

        def is_over() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job is not None and job["state"] in _TERMINAL else None

        return self.until(is_over, f"{job_id} is over")

    def unfinished(self) -> list[dict[str, Any]]:
        """Jobs that are not over."""
        return [job for job in self.jobs() if job["state"] not in _TERMINAL]

    def catalog(self) -> dict[str, Any]:
        """What the registry shows: `catalog_generation` and `data`."""
        return dict(self.http.get("/v1/adapters").raise_for_status().json())

    def aliases(self) -> dict[str, str]:
        """Targets by alias."""
        return {
            item["alias"]: item["target"] for item in self.http.get("/v1/aliases").raise_for_status().json()["data"]
        }

    def history(self, name: str) -> dict[str, Any] | None:
        """The versions of a name; None if it is not known."""
        answer = self.http.get(f"/v1/adapters/{name}/versions")
        return None if answer.status_code == 404 else dict(answer.raise_for_status().json())

    def _start_process(self, role: str) -> None:
        environment = {**self.settings.to_environment(), "HILORA_REGISTRY_ADMISSION": self._admission}
        log = self._directory / "processes.log"
        self._processes[role] = start_process(role, environment, trap=self.traps[role].path, log=log)

    def _is_ready(self) -> bool:
        if not self.is_running("registry") and not self.traps["registry"].is_sprung:
            raise AssertionError(f"the registry ended by itself\n{self.log}")
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _pid(self, role: str) -> int:
        pid = self._redis.pid if role == "redis" else self._processes[role].pid
        assert pid is not None
        return pid

    def _uploads(self) -> set[Path]:
        return set((self.data_dir / "incoming").iterdir())

    def _cut_body(self, body: bytes, *, known: set[Path]) -> Iterator[bytes]:
        half = len(body) // 2
        yield body[:half]
        self.until(lambda: self._uploads() - known, "the upload has a folder")
        self.kill("registry")
        yield body[half:]


def _texts(subject: str, count: int) -> list[str]:
    return [f"{subject} text {number}" for number in range(count)]
