"""Redis is killed and comes back."""

from __future__ import annotations

import os
import signal

import httpx

from tests.builders.patience import patient
from tests.builders.system import RunningSystem, chosen_adapters, lines_of, task_lines, upload, wait_until
from tests.e2e.test_supervision import child


class TestRedisKilled:
    def test_requests_go_on_and_uploads_work_after_its_return(self, system: RunningSystem, tmp_path):
        line = lines_of(task_lines("fit")[0]["task"])[0]
        killed = child(system, "redis-server")
        os.kill(killed, signal.SIGKILL)

        answers = [system.complete(line["prompt"]) for _ in range(5)]

        assert [chosen_adapters(answer) for answer in answers] == [[line["task"]]] * 5
        wait_until(
            lambda: child(system, "redis-server") not in {None, killed}, timeout_seconds=30, what="another Redis runs"
        )
        wait_until(
            lambda: httpx.get(f"{system.url}/v1/adapters", timeout=patient(30)).status_code == 200,
            timeout_seconds=30,
            what="the registry answers",
        )
        status, job = upload(system, name="after-the-fault", task=line["task"], scratch=tmp_path)
        assert status == 202, job
        wait_until(
            lambda: system.get(f"/v1/jobs/{job['job_id']}")["state"] == "READY",
            timeout_seconds=60,
            what="the upload is READY",
        )
        httpx.delete(f"{system.url}/v1/adapters/after-the-fault", timeout=patient(30)).raise_for_status()
