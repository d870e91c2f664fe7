"""Two routers behind a balancer and two workers: each is restarted under load, and no request fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.builders.containers import Compose
from tests.builders.deploy_tools import ROOT, tool
from tests.builders.light_load import light_load
from tests.deploy.containers.conftest import await_seeded

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def replicas(podman, environment, images):
    compose = Compose(
        podman,
        files=["deploy/compose/replicas.yml"],
        environment={**environment, "COMPOSE_PROJECT_NAME": "hilora-replicas"},
    )
    try:
        compose("up", "-d", "--no-build", "--pull", "never", seconds=400)
        compose.await_healthy("redis", "registry", "router", "worker")
        await_seeded(compose)
        yield compose
    finally:
        compose("down", "-v", "-t", "5")


def test_no_request_fails_while_routers_and_workers_are_restarted(replicas, environment):
    url = f"http://127.0.0.1:{environment['ROUTER_PORT']}"
    script = ROOT / "deploy/compose/rolling-restart.sh"
    began_of = {
        c: replicas.podman.inspect(c)["State"]["StartedAt"]
        for s in ("router", "worker")
        for c in replicas.containers(s)
    }
    with light_load(url, num_clients=4, pause_seconds=0.1) as load:
        load.await_ok(10, since=time.monotonic())
        result = subprocess.run(
            [str(script), "router", "worker"],
            cwd=ROOT,
            env={
                **os.environ,
                **replicas.podman.environment,
                **replicas.environment,
                "DOCKER": tool("podman"),
                "COMPOSE": " ".join(replicas.command),
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        load.await_ok(10, since=time.monotonic())

    assert result.stdout.count("restarted") == 4
    for container, began in began_of.items():
        assert replicas.podman.inspect(container)["State"]["StartedAt"] != began, "it was not restarted"
    sys.stdout.write(f"{len(load.outcomes)} requests, slowest {max(o.seconds for o in load.outcomes):.1f} s\n")
    assert load.failed() == []
