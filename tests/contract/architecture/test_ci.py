"""What continuous integration runs, what fails it, and what it says it did not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders.patience import patient

ROOT = Path(__file__).parents[3]


class Ci:
    """`.ci/run` in a folder where `make` and the installer only write down that they were called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        self._calls.touch()
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
        for program in ("curl", "npm", "promtool", "apt-get"):
            self._program(f"bin/{program}", "exit 0")
        self._program("scripts/install_container_tools.sh", "exit 0")
        self.builds(succeeds=True)
        self.installs(succeeds=True)
        self.makes(failing="nothing")

    def _program(self, path: str, line: str) -> None:
        file = self._folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)

    def installs(self, *, succeeds: bool) -> None:
        """Whether the tools of the deployment tests can be had."""
        self._program("scripts/install_deploy_tools.sh", f"exit {0 if succeeds else 1}")

    def builds(self, *, succeeds: bool) -> None:
        """Whether the images can be built, `python3 -m tests.builders.images`."""
        self._program("bin/python3", f'echo "images by $*"; exit {0 if succeeds else 1}')

    def makes(self, *, failing: str) -> None:
        """Which target fails."""
        installs = '[ "$*" != install ] || { mkdir -p .venv && touch .venv/.installed; }'
        fails = f'case " $* " in *" {failing} "*) exit 2;; esac'
        self._program("bin/make", f'echo "$*" >> {self._calls}; {fails}; {installs}')

    def run(self, **environment: str) -> tuple[int, list[str], str]:
        """Exit status, the targets that were made, in order, and the complaints."""
        path = f"{self._folder}/bin:{os.environ['PATH']}"
        done = subprocess.run(
            [self._folder / ".ci" / "run"],
            env={"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, self._calls.read_text().split(), done.stderr


@pytest.fixture
def ci(tmp_path):
    return Ci(tmp_path)


class TestCi:
    def test_runs_the_checks_the_static_tier_and_every_test(self, ci):
        status, targets, complaints = ci.run()

        assert status == 0
        assert (targets[0], targets[-1]) == ("install", "test")
        # The checks and the static tier run beside each other.
        assert sorted(targets[1:-1]) == ["docs-check", "imports", "lint", "proto-check", "test-deploy", "types"]
        assert complaints.startswith("NOT RUN: make test-containers: ")

    @pytest.mark.parametrize("failing", ["install", "lint", "types", "test-deploy", "test", "test-containers"])
    def test_a_target_that_fails_fails_it(self, ci, failing):
        ci.makes(failing=failing)

        assert ci.run(HILORA_CI_CONTAINERS="1")[0] != 0

    def test_images_are_built_beside_and_their_failure_fails_it(self, ci):
        ci.builds(succeeds=False)

        status, targets, _ = ci.run(HILORA_CI_CONTAINERS="1")
        assert status != 0
        assert "test" in targets and "test-containers" not in targets

    def test_a_failure_elsewhere_ends_what_builds_images(self, ci, tmp_path):
        ci._program("bin/python3", f"sleep 300 & echo $! > {tmp_path}/builder; wait")
        ci._program("bin/make", f"until [ -s {tmp_path}/builder ]; do sleep 0.05; done; exit 2")

        assert ci.run(HILORA_CI_CONTAINERS="1")[0] != 0
        # Reaped by whoever adopted it, in a moment.
        deadline = time.monotonic() + patient(10)
        while Path(f"/proc/{(tmp_path / 'builder').read_text().strip()}/stat").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert time.monotonic() < deadline

    def test_files_of_tests_are_made_in_memory_and_removed(self, ci, tmp_path):
        ci._program("bin/df", 'echo Avail; echo "$ROOM"')
        ci._program(
            "bin/make",
            'case "$*" in install) mkdir -p .venv && touch .venv/.installed;;'
            ' test) echo "$TMPDIR" >> at; ls -d "$TMPDIR";; esac',
        )
        for room in ("9000000", "7000000", ""):
            assert ci.run(ROOM=room)[0] == 0

        in_memory, *elsewhere = (tmp_path / "at").read_text().split()
        assert in_memory.startswith("/dev/shm/") and not Path(in_memory).exists()
        assert elsewhere == ["/tmp", "/tmp"]

    def test_tests_wait_for_a_busy_machine(self, ci, tmp_path):
        ci._program(
            "bin/make",
            'case "$*" in install) mkdir -p .venv && touch .venv/.installed;;'
            ' test) echo "$HILORA_TEST_PATIENCE" >> patience;; esac',
        )
        for environment in ({}, {"HILORA_TEST_PATIENCE": "5"}):
            assert ci.run(**environment)[0] == 0

        assert (tmp_path / "patience").read_text().split() == ["3", "5"]

    def test_without_containers_no_image_is_built(self, ci):
        ci.builds(succeeds=False)

        assert ci.run()[0] == 0

    def test_tools_that_cannot_be_installed_leave_their_tier_out_aloud(self, ci):
        ci.installs(succeeds=False)

        status, targets, complaints = ci.run()

        assert status == 0
        assert "test-deploy" not in targets
        assert targets[-1] == "test"
        assert "NOT RUN: make test-deploy: " in complaints

    def test_it_says_so_even_if_a_test_fails(self, ci):
        ci.installs(succeeds=False)
        ci.makes(failing="test")

        status, _, complaints = ci.run()

        assert status != 0
        assert "NOT RUN: make test-deploy: " in complaints

    def test_containers_are_run_when_asked_for(self, ci):
        status, targets, complaints = ci.run(HILORA_CI_CONTAINERS="1")

        assert (status, complaints) == (0, "")
        assert {"test", "test-containers"} <= set(targets)

    def test_containers_wait_for_the_environment_and_for_nothing_else(self, ci):
        """With `make test` they go on side by side: each of the two waits here for the other one."""
        ci._program(
            "bin/make",
            'case "$*" in install) sleep 0.5; mkdir -p .venv && touch .venv/.installed;;'
            " test) touch tested; until [ -e contained ]; do sleep 0.05; done;;"
            " test-containers) [ -e .venv/.installed ] || exit 2; touch contained;"
            " until [ -e tested ]; do sleep 0.05; done;; esac",
        )

        assert ci.run(HILORA_CI_CONTAINERS="1")[0] == 0

    @pytest.mark.parametrize("failing", ["test", "test-containers"])
    def test_what_goes_on_beside_a_failure_is_said_as_well(self, ci, failing):
        ci.makes(failing=failing)

        assert {"test", "test-containers"} <= set(ci.run(HILORA_CI_CONTAINERS="1")[1])


class TestTools:
    def test_the_installer_says_what_it_could_not_install(self, tmp_path):
        done = subprocess.run(
            [ROOT / "scripts" / "install_deploy_tools.sh", tmp_path / "tools"],
            env=dict(os.environ) | {"PYTHON": "false"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert done.returncode != 0
        assert "FAILED: " in done.stderr
        assert "kubernetes-validate" in done.stderr

    def test_it_gives_every_download_a_time_limit(self):
        lines = (ROOT / "scripts" / "install_deploy_tools.sh").read_text().splitlines()
        downloads = [line for line in lines if any(word in line for word in ("pip install", "npm install", "apt-get"))]

        assert len(downloads) == 4
        assert all("timeout " in line for line in downloads)


class TestMakeTest:
    def test_runs_every_file_and_each_in_one_process(self):
        recipe = subprocess.run(
            ["make", "--no-print-directory", "--dry-run", "test"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

        run, options = recipe.rstrip().rsplit("python -m pytest ", 1)
        assert run
        assert options.startswith("-n 2 --dist loadfile --no-loadscope-reorder ")
        # Nothing else may choose among them, or stop at a failure.
        assert {option.split("=")[0] for option in options.split()[5:]} <= {"--durations", "--durations-min"}
