"""Prometheus and its promtool, as an operating system brings them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.builders.ports import free_port
from tests.builders.system import ROOT, wait_until

OBSERVABILITY = ROOT / "deploy" / "observability"
NOT_RUN = "HILORA_NOT_RUN"
"""Environment variable: names of tools, with commas, whose tests are left out on purpose."""


def tool(name: str) -> str:
    """Path of `prometheus` or `promtool`. Without it the test fails, unless somebody said that it is not to be run."""
    if "prometheus" in os.environ.get(NOT_RUN, "").split(","):
        pytest.skip(f"NOT RUN: {NOT_RUN} leaves out what needs Prometheus")
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"No {name} here: apt-get install prometheus, or leave these tests out with {NOT_RUN}=prometheus")
    return path


def promtool(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run promtool; standard error is part of the output."""
    return subprocess.run(
        [tool("promtool"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        timeout=300,
    )


def rules() -> list[dict[str, Any]]:
    """Every rule of ours, recording ones and alarms."""
    files = sorted((OBSERVABILITY / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


class PrometheusServer:
    """A server that runs.

    Args:
        url: where it answers.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def api(self, path: str, **parameters: Any) -> Any:
        """The `data` of an answer of `/api/v1/...` that must succeed."""
        answer = httpx.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str, *, ahead_seconds: float = 0.0) -> list[dict[str, Any]]:
        """The samples of an instant query, asked at a time that may lie a little ahead: `offset` needs a past."""
        result: list[dict[str, Any]] = self.api("query", query=expression, time=time.time() + ahead_seconds)["result"]
        return result

    def is_scraping(self) -> bool:
        """Whether every target was scraped without an error."""
        targets = self.api("targets", state="active")["activeTargets"]
        return bool(targets) and all(target["health"] == "up" for target in targets)


@contextmanager
def prometheus_server(folder: Path, config: Mapping[str, Any]) -> Iterator[PrometheusServer]:
    """Run Prometheus with a configuration until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    port = free_port()
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    server = PrometheusServer(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: _answers(port), timeout_seconds=30, what="Prometheus answers")
        wait_until(server.is_scraping, timeout_seconds=30, what="Prometheus scrapes its targets")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
