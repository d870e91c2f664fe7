"""A running system's backup, restored into an empty folder: the same catalogue, the same answers."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.builders.patience import patient
from tests.builders.system import HILORA, ROOT, TESTBED, RunningSystem, lines_of, task_lines

TASKS = sorted({line["task"] for line in task_lines("fit")})
ASKED = [lines_of(task)[0]["prompt"] for task in TASKS[::6]]
STRANGE = "please write a long poem about the sea in winter"


def hilora(*arguments):
    return subprocess.run(
        [str(HILORA), *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=patient(120)
    )


@pytest.fixture(scope="module")
def backup(system, tmp_path_factory):
    file = tmp_path_factory.mktemp("backup") / "pool.tar"
    finished = hilora("backup", str(file), "--data-dir", str(system.data_dir), "--json")
    assert finished.returncode == 0, finished.stderr
    return file, json.loads(finished.stdout)


def catalogue(system):
    """What the admin door shows of each adapter, without what a change of its own numbers."""
    page = system.get("/v1/adapters?limit=1000")
    assert page["next_after"] is None
    return {entry["name"]: {k: v for k, v in entry.items() if k != "catalog_generation"} for entry in page["data"]}


def answers(system):
    """Texts and plans of greedy answers."""
    found = []
    for prompt in [*ASKED, STRANGE]:
        answer, routed = system.complete(prompt), system.route(prompt)
        found.append((answer["choices"][0]["text"], answer["hilora"]["adapters"], routed["plan"]["budgets"]))
    return found


def test_it_tells_what_it_holds(backup):
    file, summary = backup
    assert summary["num_uploads"] == 0
    # Tests before this one left more: versions that are retired, and names whose versions are collected.
    assert min(summary["num_versions"], summary["num_names"]) >= len(TASKS)
    assert 0 < summary["num_bytes"] < file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0


def test_another_one_under_the_same_name_is_refused(backup, system):
    file, _ = backup
    before = file.read_bytes()
    finished = hilora("backup", str(file), "--data-dir", str(system.data_dir))
    assert (finished.returncode, "backup_exists" in finished.stderr) == (1, True)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_system_that_runs_is_not_restored_into(backup, system):
    finished = hilora("restore", str(backup[0]), "--data-dir", str(system.data_dir))
    assert (finished.returncode, "data_dir_in_use" in finished.stderr) == (1, True)


@pytest.mark.timeout(300)
def test_an_empty_system_becomes_the_same(backup, system, tmp_path):
    file, _ = backup
    finished = hilora("restore", str(file), "--data-dir", str(tmp_path / "data"))
    assert finished.returncode == 0, finished.stderr
    # Without --adapters: whatever it knows comes from the backup.
    command = ("serve", "--base", str(TESTBED / "base"))
    copy = RunningSystem(data_dir=tmp_path / "data", command=command, pool=frozenset(TASKS)).start()
    try:
        assert catalogue(copy) == catalogue(system)
        assert answers(copy) == answers(system)
    finally:
        assert copy.terminate() == 0, copy.log[-4000:]


def test_through_a_pipe_and_for_a_registry_of_its_own(system, tmp_path):
    source, target = system.data_dir / "registry", tmp_path / "registry"
    taken, put = f"'{HILORA}' backup - --registry-dir '{source}'", f"'{HILORA}' restore - --registry-dir '{target}'"
    piped = subprocess.run(
        f"set -o pipefail; {taken} | {put}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert piped.returncode == 0, piped.stderr
    taken_names, put_names = ({path.stem for path in (root / "adapters").glob("[!.]*")} for root in (source, target))
    assert put_names == taken_names
    assert put_names >= set(TASKS)
