"""The whole system as a user runs it: `hilora demo` or `serve` as a process tree, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.builders.router_figures import has_fitted

ROOT = Path(__file__).resolve().parents[2]
TESTBED = ROOT / "examples" / "testbed"
HILORA = Path(sys.executable).parent / "hilora"


def descendants(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, *, timeout_seconds: float, what: str, interval_seconds: float = 0.1) -> Any:
    """The first true value of a condition; AssertionError after the time."""
    timeout_seconds = patient(timeout_seconds)
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(interval_seconds)
    raise AssertionError(f"not within {timeout_seconds} s: {what}")


@dataclass
class RunningSystem:
    """One `hilora demo`, or another command, on free ports."""

    data_dir: Path
    command: tuple[str, ...] = ("demo",)
    pool: frozenset[str] | None = None
    """Adapters that are there when it is ready; by default the shipped pool's."""
    port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything the process printed."""
        return (self.data_dir.parent / f"{self.data_dir.name}.log").read_text(errors="replace")

    def start(self, *, timeout_seconds: float = 120) -> RunningSystem:
        """Start and wait until it is ready with its whole pool."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with (self.data_dir.parent / f"{self.data_dir.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(HILORA), *self.command, "--port", str(self.port), "--rpc-port", str(self.rpc_port)),
                    *("--data-dir", str(self.data_dir)),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        pool = self.pool if self.pool is not None else {line["task"] for line in task_lines("fit")}
        try:
            wait_until(
                lambda: self.is_ready() and self.adapter_names() >= pool and self.has_fitted(),
                timeout_seconds=timeout_seconds,
                what="the system is ready with its pool",
                interval_seconds=0.2,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-4000:]}") from error
        return self

    def is_ready(self) -> bool:
        """Whether /readyz says so; AssertionError if the process ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"the system ended with {self.process.returncode}:\n{self.log[-4000:]}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=patient(5)).status_code == 200
        except httpx.TransportError:
            return False

    def has_fitted(self) -> bool:
        """Whether the choice knows every adapter that can be named: what is routed before may be routed anew."""
        metrics = httpx.get(f"{self.url}/metrics", timeout=patient(5))
        metrics.raise_for_status()
        return has_fitted(metrics.text, num_adapters=len(self.adapter_names()))

    def tree(self) -> list[int]:
        """The process and all below it."""
        assert self.process is not None
        return [self.process.pid, *descendants(self.process.pid)]

    def kill(self) -> None:
        """SIGKILL to every process at once: a power failure, as far as processes can show one."""
        assert self.process is not None
        pids = self.tree()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(is_alive, pids)), timeout_seconds=10, what="all processes are gone")

    def terminate(self, *, timeout_seconds: float = 60) -> int:
        """SIGTERM, as an operator does; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=patient(timeout_seconds))

    def get(self, path: str) -> Any:
        """The JSON answer of a GET that must succeed."""
        response = httpx.get(f"{self.url}{path}", timeout=patient(30))
        response.raise_for_status()
        return response.json()

    def complete(self, prompt: str, *, model: str = "auto", **fields: Any) -> dict[str, Any]:
        """The JSON answer of a greedy completion that must succeed."""
        body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, **fields}
        response = httpx.post(f"{self.url}/v1/completions", json=body, timeout=patient(60))
        assert response.status_code == 200, response.text
        return response.json()

    def route(self, text: str) -> dict[str, Any]:
        """The JSON answer of a dry run."""
        response = httpx.post(f"{self.url}/v1/route", json={"text": text}, timeout=patient(30))
        assert response.status_code == 200, response.text
        return response.json()

    def adapter_names(self) -> set[str]:
        """Adapters that /v1/models lists."""
        models = self.get("/v1/models")["data"]
        return {model["id"] for model in models if model["parent"] and model["id"] != "auto"}


def chosen_adapters(answer: dict[str, Any]) -> list[str]:
    """Names of the adapters an answer says ran."""
    return [adapter["name"] for adapter in answer["hilora"]["adapters"]]


def planned_adapters(routed: dict[str, Any]) -> list[str]:
    """Names of the adapters that a dry run would use."""
    return [budget["name"] for budget in routed["plan"]["budgets"]]


def task_lines(split: str = "test") -> list[dict[str, str]]:
    """Lines of the shipped testbed."""
    lines = [json.loads(line) for line in (TESTBED / "tasks.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def lines_of(task: str, split: str = "test") -> list[dict[str, str]]:
    """One task's lines."""
    return [line for line in task_lines(split) if line["task"] == task]


def curl(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the real curl; status and JSON body."""
    finished = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    body, _, status = finished.stdout.rpartition("\n")
    return int(status), json.loads(body) if body else {}


def write_samples(path: Path, task: str) -> Path:
    """A samples.jsonl of a task's fit lines."""
    path.write_text("".join(json.dumps({"text": line["prompt"]}) + "\n" for line in lines_of(task, "fit")))
    return path


def upload(system: RunningSystem, *, name: str, task: str, scratch: Path) -> tuple[int, dict[str, Any]]:
    """Upload a task's adapter under a name, by curl, as files with samples."""
    folder = TESTBED / "adapters" / task
    samples = write_samples(scratch / f"{name}.jsonl", task)
    return curl(
        "-F",
        f"name={name}",
        "-F",
        f"files=@{folder / 'adapter_config.json'}",
        "-F",
        f"files=@{folder / 'adapter_model.safetensors'}",
        "-F",
        f"samples=@{samples}",
        f"{system.url}/v1/adapters",
    )
