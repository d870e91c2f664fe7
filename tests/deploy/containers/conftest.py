"""One podman for the whole run; the images are built once, as Docker Compose builds them."""

from __future__ import annotations

import os
import time

import pytest

from tests.builders.containers import Compose, Podman
from tests.builders.images import SECRETS, build_images
from tests.builders.ports import free_port
from tests.builders.router_figures import has_fitted


@pytest.fixture(scope="session")
def podman(tmp_path_factory):
    podman = Podman(tmp_path_factory.mktemp("podman"))
    podman.build_stand_ins()
    with podman.serving():
        yield podman


@pytest.fixture(scope="session")
def environment():
    """What a user writes into .env; ports that are free, so that nothing else on the machine is met."""
    return {
        **SECRETS,
        "COMPOSE_PROFILES": "cpu,testbed",
        "COMPOSE_PROJECT_NAME": "hilora-test",
        "ROUTER_PORT": str(free_port()),
        "ROUTER_RPC_PORT": str(free_port()),
        "REGISTRY_PORT": str(free_port()),
    }


@pytest.fixture(scope="session")
def images(podman, environment):
    """The three images, built from the sources as they are; seconds that it took, by service.

    With HILORA_REUSE_IMAGES set, images that are there are taken as they are: for work on these tests, and where
    `tests.builders.images` has just built them.
    """
    return build_images(podman, environment, reuses=bool(os.environ.get("HILORA_REUSE_IMAGES")))


@pytest.fixture(scope="module")
def system(podman, environment, images):
    """The system of docker-compose.yml, up and healthy; taken down with all its data afterwards."""
    compose = Compose(podman, environment=environment)
    try:
        compose("up", "-d", "--no-build", "--pull", "never", seconds=400)
        compose.await_healthy("redis", "registry", "router", "worker")
        await_seeded(compose)
        yield compose
    finally:
        compose("down", "-v", "-t", "5")


_FIGURES = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read().decode())"


def await_seeded(compose, seconds=300):
    """The shipped adapters are registered, and every router has fitted its statistics to all of them."""
    deadline = time.monotonic() + seconds
    while (state := compose.podman.inspect(compose.container("testbed"))["State"])["Running"]:
        assert time.monotonic() < deadline, "the adapters were not registered in time"
        time.sleep(0.5)
    assert state["ExitCode"] == 0, compose.podman("logs", compose.container("testbed"), with_errors=True)
    for router in compose.containers("router"):
        while not has_fitted(compose.podman("exec", router, "python", "-c", _FIGURES), num_adapters=36):
            assert time.monotonic() < deadline, "a router did not come to know all adapters"
            time.sleep(1)
