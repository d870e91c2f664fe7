from __future__ import annotations

import json
from pathlib import Path

import pytest

from hilora_lab.testbed.folder import TaskLine, Testbed
from hilora_lab.testbed.report import overall, score_tasks, write_report

TASKS = {"copy-letters": "copy", "copy-digits": "copy", "ends-letters": "ends"}


def lines_of(task):
    return [
        TaskLine(
            task=task, family=TASKS[task], domain=task.split("-")[1], split="test", prompt=f"{task} {n}", answer="x"
        )
        for n in range(4)
    ]


class ScriptedPool:
    """Answers as many of the four lines as it is told for (adapter, task)."""

    def __init__(self, num_right):
        self._num_right = num_right

    def answered(self, adapter_name, lines):
        right = self._num_right.get((adapter_name, lines[0].task), 0)
        return [idx < right for idx in range(len(lines))]


@pytest.fixture
def testbed(tmp_path):
    for task in ("copy-letters", "copy-digits"):
        (tmp_path / "adapters" / task).mkdir(parents=True)
    return Testbed(folder=Path(tmp_path), lines=tuple(line for task in TASKS for line in lines_of(task)))


@pytest.fixture
def scores(testbed):
    num_right = {
        (None, "copy-letters"): 1,
        ("copy-letters", "copy-letters"): 4,
        ("copy-digits", "copy-letters"): 2,
        ("copy-digits", "copy-digits"): 3,
        (None, "ends-letters"): 2,
    }
    return score_tasks(testbed, ScriptedPool(num_right), "test")


class TestScores:
    def test_each_task_against_base_own_and_siblings(self, scores):
        letters, digits, ends = scores

        assert (letters.base, letters.own_adapter, letters.siblings) == (0.25, 1.0, 0.5)
        assert (digits.base, digits.own_adapter, digits.siblings) == (0.0, 0.75, 0.0)
        assert (ends.base, ends.own_adapter, ends.siblings) == (0.5, None, None)

    def test_the_means_leave_the_unseen_tasks_apart(self, scores):
        means = overall(scores)

        assert means["base"] == 0.125
        assert means["own_adapter"] == 0.875
        assert means["siblings"] == 0.25
        assert means["unseen_base"] == 0.5
        assert (means["num_tasks"], means["num_unseen_tasks"], means["num_prompts"]) == (2, 1, 8)

    def test_each_task_is_announced(self, testbed):
        announced = []

        score_tasks(testbed, ScriptedPool({}), "test", lambda score: announced.append(score.task))

        assert announced == list(TASKS)

    def test_the_file_holds_means_tasks_and_provenance(self, scores, tmp_path):
        returned = write_report(tmp_path / "report.json", provenance={"seed": 5}, split="test", scores=scores)

        report = json.loads((tmp_path / "report.json").read_text())
        assert report == returned
        assert report["seed"] == 5
        assert report["split"] == "test"
        assert report["exact_match"] == overall(scores)
        assert [task["task"] for task in report["tasks"]] == list(TASKS)
