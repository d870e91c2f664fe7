"""kill -9 of everything, loss of Redis, and an orderly end: what was READY stays, nothing half-done shows."""

from __future__ import annotations

import json
import shutil
import threading
import time

import httpx
import pytest

from tests.builders.patience import patient
from tests.builders.system import RunningSystem, chosen_adapters, is_alive, lines_of, task_lines, upload, wait_until

POOL = {line["task"] for line in task_lines("fit")}
TASK = min(POOL)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A system of our own: it is killed."""
    running = RunningSystem(data_dir=tmp_path_factory.mktemp("crash") / "data").start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.kill()


def generate_until_cut(system, lost):
    body = {"model": "auto", "prompt": lines_of(TASK)[0]["prompt"], "max_tokens": 24, "temperature": 0}
    while True:
        try:
            httpx.post(f"{system.url}/v1/completions", json=body, timeout=patient(10)).raise_for_status()
        except httpx.TransportError:
            lost.set()
            return


def jobs(system):
    return system.get("/v1/jobs")["data"]


class TestCrash:
    """In this order: each test starts from what the one before it left behind."""

    def test_kill_during_ingest_and_generation_loses_nothing(self, system, tmp_path):
        generation = system.route("x")["catalog_generation"]
        lost = threading.Event()
        client = threading.Thread(target=generate_until_cut, args=(system, lost))
        client.start()
        accepted = [upload(system, name=f"late-{number}", task=TASK, scratch=tmp_path) for number in range(4)]
        assert [status for status, _ in accepted] == [202] * 4

        system.kill()
        client.join(timeout=patient(30))
        system.start()

        assert lost.is_set()
        assert system.adapter_names() >= POOL
        for _, job in accepted:
            state = wait_until(
                lambda job=job: (
                    (found := system.get(f"/v1/jobs/{job['job_id']}"))["state"] in {"READY", "FAILED"} and found
                ),
                timeout_seconds=60,
                what="an interrupted ingest came to an end",
            )
            assert state["state"] == "READY" or state["error"]["code"]
        ready = {job["adapter_name"] for job in jobs(system) if job["state"] == "READY"}
        assert system.adapter_names() == POOL | {name for name in ready if name.startswith("late-")}
        assert system.route("x")["catalog_generation"] >= generation
        line = lines_of(TASK)[0]
        assert system.complete(line["prompt"], model=TASK)["choices"][0]["text"].strip()

    def test_redis_without_its_data_is_rebuilt_from_the_artifacts(self, system):
        before = system.adapter_names()
        generation = system.route("x")["catalog_generation"]
        system.kill()
        redis_files = [path for path in system.data_dir.rglob("*") if "redis" in path.name and path.exists()]
        assert redis_files
        for path in redis_files:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()

        system.start()

        assert system.adapter_names() == before
        assert system.route("x")["catalog_generation"] >= generation
        line = lines_of(TASK)[0]
        assert chosen_adapters(system.complete(line["prompt"]))

    def test_sigterm_lets_a_stream_finish_and_leaves_no_process(self, system):
        pids = system.tree()
        line = lines_of(TASK)[0]
        body = {"model": TASK, "prompt": line["prompt"], "max_tokens": 24, "temperature": 0, "stream": True}

        with httpx.stream("POST", f"{system.url}/v1/completions", json=body, timeout=patient(60)) as stream:
            pieces = stream.iter_lines()
            first = next(pieces)
            assert system.process is not None
            system.process.terminate()
            rest = [piece for piece in pieces if piece]

        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        chunks = [json.loads(piece.removeprefix("data: ")) for piece in [first, *rest[:-1]] if piece]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]).strip() == line["answer"]
        assert system.process.wait(timeout=patient(60)) == 0
        deadline = time.monotonic() + patient(5)
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [pid for pid in pids if is_alive(pid)] == []
