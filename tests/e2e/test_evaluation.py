"""`hilora eval` and the other commands a person types, against the running system."""

from __future__ import annotations

import json
import subprocess

from tests.builders.patience import patient
from tests.builders.system import HILORA, TESTBED, lines_of, task_lines


def hilora(system, *arguments):
    return subprocess.run(
        [str(HILORA), *arguments, "--url", system.url],
        capture_output=True,
        text=True,
        timeout=patient(240),
        check=False,
    )


class TestEval:
    def test_prints_its_contract_and_sane_numbers(self, system):
        done = hilora(system, "eval", "--testbed", str(TESTBED), "--json", "--limit-per-task", "2")

        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert set(report) == {"id", "ood", "unseen", "base", "oracle"}
        assert all(set(setting) == {"exact_match", "n"} for setting in report.values())
        num_tasks = len({line["task"] for line in task_lines("fit")})
        assert report["id"]["n"] == report["oracle"]["n"] == 2 * num_tasks
        assert report["oracle"]["exact_match"] >= 0.9
        assert report["id"]["exact_match"] >= 0.85
        assert report["base"]["exact_match"] <= 0.1
        assert report["base"]["exact_match"] < report["ood"]["exact_match"] < report["id"]["exact_match"]


class TestOtherCommands:
    def test_route_shows_the_right_adapter_to_a_person(self, system):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        done = hilora(system, "route", line["prompt"])

        assert done.returncode == 0, done.stderr
        assert line["task"] in done.stdout

    def test_generate_streams_the_answer_and_names_the_adapter(self, system):
        line = lines_of(task_lines("fit")[0]["task"])[0]

        done = hilora(system, "generate", line["prompt"], "--stream")

        assert done.returncode == 0, done.stderr
        assert line["answer"] in done.stdout
        assert line["task"] in done.stdout + done.stderr

    def test_adapters_list_shows_the_pool(self, system):
        done = hilora(system, "adapters", "list")

        assert done.returncode == 0, done.stderr
        assert all(name in done.stdout for name in system.adapter_names())

    def test_an_unknown_adapter_is_an_error_with_a_remedy(self, system):
        done = hilora(system, "adapters", "show", "nobody")

        assert done.returncode == 1
        assert "nobody" in done.stderr

    def test_no_server_is_said_plainly(self):
        done = subprocess.run(
            [str(HILORA), "route", "x", "--url", "http://127.0.0.1:9"],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
        )

        assert done.returncode == 3
        assert "hilora" in done.stderr
        assert "Traceback" not in done.stderr
