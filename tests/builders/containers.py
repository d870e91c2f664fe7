"""Real containers for tests: podman, stand-ins for the official base images, Docker Compose on podman's socket.

Differences to a machine with Docker, all of them here and none in the shipped files: runc and file events, because
there is no systemd; a loop that runs the health checks, which podman leaves to systemd's timers; images under the
official names that were built from Debian's packages.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.builders.deploy_tools import ROOT, TOOLS, tool

STATE = Path(os.environ.get("HILORA_CONTAINER_STATE", "/var/tmp/hilora-containers"))
BASES = ROOT / "tests/deploy/containers/bases"
STAND_INS = {
    "docker.io/library/python:3.11-slim-bookworm": "python.Dockerfile",
    "docker.io/library/redis:7.4-bookworm": "redis.Dockerfile",
    "docker.io/library/haproxy:3.0": "haproxy.Dockerfile",
}
_SECONDS_UNTIL_CHECKED_AGAIN = 3.0
"""Of a container that is not healthy yet: each check is four processes, which what starts has to wait for."""
_CA_BUNDLE = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))


class Podman:
    """Podman with a store, a configuration and a socket of its own.

    Raises:
        AssertionError: a program or the root file system is missing: scripts/install_container_tools.sh brings both.
    """

    def __init__(self, folder: Path) -> None:
        self._program = tool("podman")
        assert (STATE / "rootfs.tar").exists(), (
            "NOT RUN: no root file system; scripts/install_container_tools.sh makes it"
        )
        self.socket = folder / "podman.sock"
        (folder / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            # Without CAP_SYS_RESOURCE the defaults cannot be set.
            '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
            '[network]\nnetwork_backend = "netavark"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{STATE}/graph"\nrunroot = "{STATE}/run"\n'
        )
        # No credentials, and the file that says so.
        (folder / "config.json").write_text("{}")
        self.environment = {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(folder),
            # Podman's socket speaks the builder's older protocol.
            "DOCKER_BUILDKIT": "0",
        }

    def __call__(self, *arguments: str, seconds: float = 120, check: bool = True, with_errors: bool = False) -> str:
        """Run podman and return what it printed; what it printed on standard error, too, if wanted.

        Raises:
            AssertionError: it failed.
        """
        result = subprocess.run(
            [self._program, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert result.returncode == 0 or not check, f"podman {' '.join(arguments)}: {result.stderr[-2000:]}"
        return (result.stdout + (result.stderr if with_errors else "")).strip()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that podman knows of a container or an image."""
        return json.loads(self("inspect", name))[0]

    def build_stand_ins(self) -> None:
        """The base images under their official names, from the root file system."""
        if not self("images", "-q", "localhost/rootfs"):
            self("import", str(STATE / "rootfs.tar"), "localhost/rootfs", seconds=300)
        for image, dockerfile in STAND_INS.items():
            if self("images", "-q", image):
                continue
            context = STATE / "context"
            context.mkdir(exist_ok=True)
            shutil.copy(_CA_BUNDLE, context / "ca.crt")
            self(
                *("build", "--format", "docker", "--pull=never", "--network", "host", "-t", image),
                *("-f", str(BASES / dockerfile), str(context)),
                seconds=300,
            )

    @contextlib.contextmanager
    def serving(self, *, checks_health: bool = True) -> Iterator[None]:
        """Podman's socket, and the health checks, for as long as the block runs.

        Args:
            checks_health: for containers that run; a build has none, and asking for them each second costs it.
        """
        service = subprocess.Popen(
            [self._program, "system", "service", "--time=0", f"unix://{self.socket}"],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = threading.Event()
        checks = threading.Thread(target=self._check_health, args=(ended,), daemon=True)
        try:
            deadline = time.monotonic() + 20
            while not self.socket.exists():
                assert time.monotonic() < deadline, "podman's socket did not appear"
                time.sleep(0.1)
            if checks_health:
                checks.start()
            yield
        finally:
            ended.set()
            if checks_health:
                checks.join(timeout=30)
            service.terminate()
            service.wait(timeout=20)

    def _check_health(self, ended: threading.Event) -> None:
        """Every few seconds until a container is healthy, then as often as its image or the compose file says."""
        due_at: dict[str, float] = {}
        while not ended.wait(1.0):
            for line in self("ps", "--format", "{{.ID}} {{.Status}}", check=False).splitlines():
                identity, _, status = line.partition(" ")
                if ended.is_set() or "Paused" in status or time.monotonic() < due_at.get(identity, 0.0):
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self("healthcheck", "run", identity, check=False, seconds=20)
                is_healthy = "(healthy)" in status
                due_at[identity] = time.monotonic() + (
                    self._health_interval(identity) if is_healthy else _SECONDS_UNTIL_CHECKED_AGAIN
                )

    def _health_interval(self, identity: str) -> float:
        """Seconds between the checks of a healthy container; 0, for every second, where it is gone or tells none."""
        with contextlib.suppress(AssertionError):
            return self.inspect(identity)["Config"].get("Healthcheck", {}).get("Interval", 0) / 1e9
        return 0.0


@contextlib.contextmanager
def package_index() -> Iterator[str]:
    """A package index on loopback with the build of torch that this machine's pip takes, as a TORCH_CPU_INDEX."""
    wheels = STATE / "wheels"
    if not (wheels / "torch").is_dir():
        downloads = STATE / "downloads"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "-c", str(ROOT / "constraints.txt"), "torch"]
        subprocess.run([*command, "-d", str(downloads)], check=True, timeout=900)
        for file in sorted(downloads.iterdir()):
            folder = wheels / file.name.split("-")[0].lower().replace("_", "-")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(file, folder / file.name)
    handler = partial(_QuietFiles, directory=str(wheels))
    with _server_at_its_last_port(handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def _server_at_its_last_port(handler: Any) -> http.server.ThreadingHTTPServer:
    """The address is an argument of the builds: another one would make every layer anew."""
    remembered = STATE / "index-port"
    ports = [int(remembered.read_text()), 0] if remembered.exists() else [0]
    for port in ports:
        with contextlib.suppress(OSError):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
            remembered.write_text(str(server.server_address[1]))
            return server
    raise OSError("no port on loopback")


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Nobody reads it."""


class Compose:
    """Docker Compose over the shipped files.

    Args:
        podman: serving.
        files: beside docker-compose.yml.
        environment: variables of the files; secrets among them.
    """

    def __init__(self, podman: Podman, *, files: Sequence[str] = (), environment: dict[str, str]) -> None:
        self.podman = podman
        self.environment = environment
        names = ["docker-compose.yml", *files]
        program = TOOLS / "bin" / "docker-compose"
        base = [str(program)] if program.exists() else [tool("docker"), "compose"]
        self.command = [*base, "--env-file", "/dev/null", *(part for name in names for part in ("-f", name))]

    def __call__(self, *arguments: str, seconds: float = 300) -> str:
        """Run it and return what it printed.

        Raises:
            AssertionError: it failed.
        """
        result = subprocess.run(
            [*self.command, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.podman.environment, **self.environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert result.returncode == 0, f"compose {' '.join(arguments)}: {(result.stdout + result.stderr)[-4000:]}"
        return result.stdout

    def containers(self, service: str) -> list[str]:
        """The identities of a service's containers, running or not."""
        return self("ps", "-a", "-q", service).split()

    def container(self, service: str) -> str:
        """The identity of its only one."""
        (identity,) = self.containers(service)
        return identity

    def await_healthy(self, *services: str, seconds: float = 240) -> None:
        """Return when every container of these services runs and is healthy.

        Raises:
            AssertionError: one is not in time; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        waiting = [identity for service in services for identity in self.containers(service)]
        while waiting:
            state = self.podman.inspect(waiting[0])["State"]
            health = state.get("Health") or state.get("Healthcheck") or {}
            if state["Running"] and health.get("Status") in {"healthy", "", None}:
                waiting.pop(0)
                continue
            if time.monotonic() > deadline:
                log = self.podman("logs", "--tail", "30", waiting[0], check=False, with_errors=True)
                raise AssertionError(f"{services}: {waiting[0][:12]} is {state['Status']}, {health}\n{log}")
            time.sleep(0.5)
