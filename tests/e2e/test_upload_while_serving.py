"""An adapter comes and goes while the system serves under load."""

from __future__ import annotations

import threading

import httpx
import pytest

from tests.builders.patience import patient
from tests.builders.system import chosen_adapters, lines_of, planned_adapters, task_lines, upload, wait_until


class Load:
    """A few clients that generate without a pause."""

    def __init__(self, system, *, num_clients=3):
        self.failures = []
        self.num_answers = 0
        self._stop = threading.Event()
        prompts = [line["prompt"] for line in task_lines()[::7]]
        self._threads = [
            threading.Thread(target=self._run, args=(system, prompts[start::num_clients]), daemon=True)
            for start in range(num_clients)
        ]

    def _run(self, system, prompts):
        while not self._stop.is_set():
            for prompt in prompts:
                if self._stop.is_set():
                    return
                body = {"model": "auto", "prompt": prompt, "max_tokens": 24, "temperature": 0}
                try:
                    answer = httpx.post(f"{system.url}/v1/completions", json=body, timeout=patient(60))
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                self.num_answers += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=patient(60))


@pytest.fixture
def task(system):
    """A task of the pool whose adapter is taken out for the test and put back after it."""
    return task_lines("fit")[-1]["task"]


class TestUploadWhileServing:
    def test_a_new_adapter_is_used_and_a_retired_one_is_not(self, system, task, tmp_path):
        lines = lines_of(task)[:3]
        removed = httpx.delete(f"{system.url}/v1/adapters/{task}", timeout=patient(30))
        assert removed.status_code in {200, 202, 204}
        wait_until(lambda: task not in system.adapter_names(), timeout_seconds=10, what="the task has no adapter")
        assert all(task not in chosen_adapters(system.complete(line["prompt"])) for line in lines)

        with Load(system) as load:
            # A new arrival, under a name the system has never heard.
            status, job = upload(system, name="newcomer", task=task, scratch=tmp_path)
            assert status == 202, job
            seen = {job["state"]}

            def finished():
                state = system.get(f"/v1/jobs/{job['job_id']}")
                seen.add(state["state"])
                assert state["state"] != "FAILED", state
                return state if state["state"] == "READY" else None

            ready = wait_until(finished, timeout_seconds=60, what="the upload is READY", interval_seconds=0.02)
            assert ready["progress"] == 1.0
            assert len(seen) > 1
            wait_until(lambda: "newcomer" in system.adapter_names(), timeout_seconds=10, what="it is listed")
            # Listed at once, routed to as soon as the router has refitted its pool.
            wait_until(
                lambda: "newcomer" in planned_adapters(system.route(lines[0]["prompt"])),
                timeout_seconds=10,
                what="its task is routed to it",
            )
            answers = [system.complete(line["prompt"]) for line in lines]
            assert all("newcomer" in chosen_adapters(answer) for answer in answers)
            assert any(
                answer["choices"][0]["text"].strip() == line["answer"]
                for answer, line in zip(answers, lines, strict=True)
            )

            # Retired while a request with it is in flight: that one finishes, later ones do without.
            with httpx.stream(
                "POST",
                f"{system.url}/v1/completions",
                json={
                    "model": "newcomer",
                    "prompt": lines[0]["prompt"],
                    "max_tokens": 24,
                    "temperature": 0,
                    "stream": True,
                },
                timeout=patient(60),
            ) as stream:
                pieces = stream.iter_lines()
                first = next(pieces)
                gone = httpx.delete(f"{system.url}/v1/adapters/newcomer", timeout=patient(30))
                rest = [piece for piece in pieces if piece]
            assert gone.status_code in {200, 202, 204}
            assert first.startswith("data: ")
            assert rest[-1] == "data: [DONE]"
            assert not any('"error"' in piece for piece in rest)
            wait_until(lambda: "newcomer" not in system.adapter_names(), timeout_seconds=10, what="it is not listed")
            assert all("newcomer" not in chosen_adapters(system.complete(line["prompt"])) for line in lines)
            pinned = httpx.post(
                f"{system.url}/v1/completions", json={"model": "newcomer", "prompt": "x"}, timeout=patient(30)
            )
            assert pinned.status_code == 404

            status, job = upload(system, name=task, task=task, scratch=tmp_path)
            assert status == 202, job
            wait_until(lambda: task in system.adapter_names(), timeout_seconds=60, what="the pool is whole again")

        assert load.failures == []
        assert load.num_answers > 10
