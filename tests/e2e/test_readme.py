"""The README's own words, run against the system."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.builders.patience import patient
from tests.builders.system import HILORA, ROOT, TESTBED, lines_of, task_lines, wait_until, write_samples

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def here(system, text):
    return text.replace("http://127.0.0.1:8000", system.url)


class TestReadme:
    def test_the_curl_line_is_answered_by_the_right_adapter(self, system):
        command = next(block for block in blocks("bash") if block.startswith("curl"))

        done = subprocess.run(
            ["bash", "-c", here(system, command)], capture_output=True, text=True, timeout=patient(60), check=True
        )

        answer = json.loads(done.stdout)
        assert answer["choices"][0]["text"].strip() == "d c f a"
        assert [adapter["name"] for adapter in answer["hilora"]["adapters"]] == ["reverse-letters"]

    def test_the_python_block_prints_answer_and_adapters(self, system):
        (program,) = blocks("python")

        done = subprocess.run(
            [sys.executable, "-c", here(system, program)],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
        )

        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("d c f a")
        assert "reverse-letters" in done.stdout

    def test_its_two_commands_are_targets(self):
        makefile = (ROOT / "Makefile").read_text()

        assert re.findall(r"^make (\w+)", README, re.MULTILINE) == ["run", "test"]
        assert "\nrun:" in makefile
        assert "\ntest:" in makefile

    @pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README))))
    def test_links_lead_somewhere(self, link):
        assert link.startswith("https://") or (ROOT / link).exists()

    def test_the_adapter_commands_do_what_they_say(self, system, tmp_path):
        task = task_lines("fit")[0]["task"]
        samples = write_samples(tmp_path / "samples.jsonl", task)

        def hilora(*arguments):
            return subprocess.run(
                [str(HILORA), "adapters", *arguments, "--url", system.url],
                capture_output=True,
                text=True,
                timeout=patient(120),
                check=False,
            )

        added = hilora(
            "add", str(TESTBED / "adapters" / task), "--name", "my-task", "--samples", str(samples), "--wait"
        )
        assert added.returncode == 0, added.stderr
        assert "READY" in added.stdout
        assert "my-task" in hilora("list").stdout
        assert json.loads(hilora("show", "my-task").stdout)["name"] == "my-task"
        wait_until(lambda: "my-task" in system.adapter_names(), timeout_seconds=10, what="it is listed")
        assert system.complete(lines_of(task)[0]["prompt"], model="my-task")["choices"][0]["text"].strip()
        assert hilora("remove", "my-task").returncode == 0
        wait_until(lambda: "my-task" not in system.adapter_names(), timeout_seconds=10, what="it is gone")
