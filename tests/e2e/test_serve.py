"""`hilora serve` with a pool of one's own: folders of PEFT adapters, each with its samples."""

from __future__ import annotations

import shutil

import pytest

from tests.builders.system import (
    TESTBED,
    RunningSystem,
    chosen_adapters,
    lines_of,
    planned_adapters,
    task_lines,
    write_samples,
)

TASKS = sorted({line["task"] for line in task_lines("fit")})[::12]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    for task in TASKS:
        shutil.copytree(TESTBED / "adapters" / task, root / "pool" / task)
        write_samples(root / "pool" / task / "samples.jsonl", task)
    command = ("serve", "--base", str(TESTBED / "base"), "--adapters", str(root / "pool"))
    running = RunningSystem(data_dir=root / "data", command=command, pool=frozenset(TASKS)).start()
    yield running
    assert running.terminate() == 0, running.log[-4000:]


class TestServe:
    def test_serves_its_own_pool_and_nothing_else(self, system):
        assert system.adapter_names() == set(TASKS)

    @pytest.mark.parametrize("task", TASKS)
    def test_each_task_finds_its_adapter(self, system, task):
        lines = lines_of(task)[:3]

        answers = [system.complete(line["prompt"]) for line in lines]

        assert all(chosen_adapters(answer) == [task] for answer in answers)
        assert any(
            answer["choices"][0]["text"].strip() == line["answer"] for answer, line in zip(answers, lines, strict=True)
        )

    def test_a_text_nobody_explains_is_said_to_be_out_of_distribution(self, system):
        routed = system.route("please write a long poem about the sea in winter")

        assert routed["is_out_of_distribution"] is True
        assert planned_adapters(routed)
