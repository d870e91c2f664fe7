"""What holds the one-process system together: its children come back, its data folder has one owner."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.builders.patience import patient
from tests.builders.ports import free_port
from tests.builders.system import HILORA, ROOT, chosen_adapters, lines_of, task_lines, upload, wait_until

TASK = task_lines("fit")[0]["task"]


def child(system, word):
    """The process of the system whose command line holds a word."""
    for pid in system.tree()[1:]:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in command and "tethered_exec" not in command:
            return pid
    return None


def kill_and_await_successor(system, word):
    killed = child(system, word)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: child(system, word) not in {None, killed}, timeout_seconds=30, what=f"another {word} runs")


def uploads_work(system, scratch, name):
    """Whether an adapter can be registered and retired again."""
    wait_until(
        lambda: httpx.get(f"{system.url}/v1/adapters", timeout=patient(30)).status_code == 200,
        timeout_seconds=30,
        what="the registry answers",
    )
    status, job = upload(system, name=name, task=TASK, scratch=scratch)
    assert status == 202, job
    wait_until(
        lambda: system.get(f"/v1/jobs/{job['job_id']}")["state"] == "READY",
        timeout_seconds=60,
        what="the upload is READY",
    )
    httpx.delete(f"{system.url}/v1/adapters/{name}", timeout=patient(30)).raise_for_status()


class TestChildren:
    def test_none_imports_what_only_training_uses(self, system):
        """peft is installed here, and transformers would import it, and bitsandbytes' library with it."""
        libraries = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in system.tree()}
        assert any("/torch/lib/" in maps for maps in libraries.values())
        assert [pid for pid, maps in libraries.items() if "bitsandbytes" in maps] == []

    def test_generation_goes_on_without_redis_and_uploads_after_its_return(self, system, tmp_path):
        line = lines_of(TASK)[0]

        kill_and_await_successor(system, "redis-server")

        assert chosen_adapters(system.complete(line["prompt"])) == [TASK]
        uploads_work(system, tmp_path, "after-redis")

    def test_an_ingest_process_that_dies_is_replaced(self, system, tmp_path):
        kill_and_await_successor(system, "ingest_worker")

        uploads_work(system, tmp_path, "after-ingest")


class TestOneOwner:
    def test_a_second_system_on_the_same_data_is_refused(self, system):
        done = subprocess.run(
            [str(HILORA), "demo", "--port", str(free_port()), "--data-dir", str(system.data_dir)],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
            cwd=ROOT,
        )

        assert done.returncode == 1
        assert "data_dir_in_use" in done.stderr
        assert str(system.process.pid) in done.stderr
        assert system.is_ready()

    def test_a_port_that_is_taken_is_said_at_once(self, system, tmp_path):
        done = subprocess.run(
            [str(HILORA), "demo", "--port", str(system.port), "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
            cwd=ROOT,
        )

        assert done.returncode == 1
        assert "port_in_use" in done.stderr
        assert "Traceback" not in done.stderr
