"""`hilora bench flan` against a local hub: three adapters of the shipped pool stand in for the public ones.

The command runs in a process of its own, because the hub's library reads HF_ENDPOINT once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hilora_lab.testbed.folder import read_testbed
from tests.builders.patience import patient
from tests.fakes.hub_server import hub_server

ROOT = Path(__file__).resolve().parents[3]
TESTBED = ROOT / "examples" / "testbed"
TASKS = ("rotate-letters", "reverse-digits", "mirror-capitals")
COMMAND = "import sys; from hilora_cli.main import main; sys.argv = ['hilora', *sys.argv[1:]]; main()"


def rows():
    testbed = read_testbed(TESTBED)
    for task in (*TASKS, "sort-letters"):
        for split, num_lines in (("fit", 20), ("dev", 8), ("test", 3)):
            for line in testbed.lines_of(task, split)[:num_lines]:
                yield {
                    "task": f"{task}_10templates",
                    "domain": line.family,
                    "split": split,
                    "inputs": line.prompt,
                    "targets": line.answer,
                }


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flan")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    arguments = ["bench", "flan", "--data", str(data), "--into", str(folder / "pool"), "--recipe", "flan-t5-large"]
    arguments += ["--base", str(TESTBED / "base"), "--adapter", "public/stand-in-{task}", "--json"]
    arguments += ["--strategies", "retriever-selection"]
    with hub_server() as hub:
        for task in TASKS:
            files = {path.name: path.read_bytes() for path in (TESTBED / "adapters" / task).iterdir()}
            hub.add(f"public/stand-in-{task}", files)
        hub.add("public/stand-in-sort-letters", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickled"})
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(240),
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "pool", json.loads(done.stdout)


def test_adapters_come_from_the_hub_at_a_commit(ran):
    _, report = ran

    assert set(report["sources"]) == set(TASKS)
    assert all("@" in source and len(source.partition("@")[2]) == 40 for source in report["sources"].values())


def test_what_the_door_refuses_is_left_out_with_its_reason(ran):
    pool, report = ran

    assert "pickle" in report["adapters_left_out"]["sort-letters"]
    assert not (pool / "adapters" / "sort-letters").exists()


def test_the_folder_is_a_testbed(ran):
    testbed = read_testbed(ran[0])

    assert set(testbed.adapter_names) == set(TASKS)
    assert testbed.unseen_task_names == ()
    assert {len(testbed.lines_of(task, "fit")) for task in TASKS} == {20}


def test_strategies_are_compared_on_it(ran):
    _, report = ran

    assert report["strategies"]["hilora"]["id"]["exact_match"] >= 0.8
    assert report["references"]["base"]["id"]["exact_match"] <= 0.2
    assert set(report["strategies"]) == {"hilora", "retriever-selection"}
