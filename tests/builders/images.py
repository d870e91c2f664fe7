"""The three images as Docker Compose builds them; `python -m tests.builders.images` does it before a test asks.

Needs nothing that is installed, so that continuous integration can build them beside the Python environment: both wait
for downloads most of the time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.builders.containers import Compose, Podman, package_index

TEST_FILE = "tests/deploy/containers/compose.test.yml"
SERVICES = ("registry", "router", "worker")
SECRETS = {"REDIS_PASSWORD": "redissecret", "HILORA_ADMIN_KEY": "adminsecret", "GRAFANA_PASSWORD": "unused"}
"""Without them the compose file is refused."""


def image_of(service: str) -> str:
    """The name of a service's image."""
    return f"docker.io/library/hilora-{service}:0.1.0"


def build_images(podman: Podman, environment: Mapping[str, str], *, reuses: bool) -> dict[str, float]:
    """Build the images from the sources as they are; seconds that it took, by service.

    Args:
        podman: serving, with its stand-ins.
        environment: of the compose file.
        reuses: images that are there are taken as they are.
    """
    wanted = [service for service in SERVICES if not (reuses and podman("images", "-q", image_of(service)))]
    with package_index() as index:
        compose = Compose(podman, files=[TEST_FILE], environment={**environment, "TORCH_CPU_INDEX": index})

        def build(service: str) -> float:
            began = time.monotonic()
            compose("build", service, seconds=1500)
            return time.monotonic() - began

        # The first alone, since the others have torch and the converted encoder of it; then two at a time, as much of a
        # build is waiting.
        seconds = {service: build(service) for service in wanted[:1]}
        with ThreadPoolExecutor(2) as pool:
            seconds |= zip(wanted[1:], pool.map(build, wanted[1:]), strict=True)
    return seconds


def main() -> None:
    """Build all, whatever is there."""
    with tempfile.TemporaryDirectory(prefix="hilora-podman-") as folder:
        podman = Podman(Path(folder))
        podman.build_stand_ins()
        with podman.serving(checks_health=False):
            seconds = build_images(podman, SECRETS, reuses=False)
    sys.stdout.write(f"images built, seconds: { {name: round(took) for name, took in seconds.items()} }\n")


if __name__ == "__main__":
    main()
