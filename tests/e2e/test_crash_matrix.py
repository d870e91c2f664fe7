"""kill -9 of registry, ingest process and Redis at every step: nothing lost, nothing half-visible, every job ends.

After each row of the matrix everything is started again and must come to rest by itself. Then every job is over, the
store is sound, catalogue and followers say what the disk says, and the change is either made as a whole or not begun;
in that case, asking again makes it. One follower looks on from the first row to the last.
"""

from __future__ import annotations

import httpx
import pytest

from tests.builders.catalog_follower import CatalogFollower
from tests.builders.crash_changes import CHANGES, seen
from tests.builders.crash_matrix import MATRIX
from tests.builders.crash_system import CrashSystem
from tests.builders.store_check import accepted_jobs, disk_catalog, store_problems

DONE = {"READY", "QUARANTINED"}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    running = CrashSystem(tmp_path_factory.mktemp("matrix"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def follower(system):
    with CatalogFollower(f"127.0.0.1:{system.settings.rpc_port}", system.data_dir) as following:
        yield following


@pytest.fixture(scope="module")
def held():
    """The rows that held."""
    return []


def parts(expected, name):
    """What a change says of a name, for the name itself."""
    return {key: name if value == "{name}" else value for key, value in expected.items()}


def shows(system, name, expected):
    """Whether clients see it; the assertion says what they see instead."""
    found = seen(system, name)
    wanted = parts(expected, name)
    assert {key: found.get(key) for key in wanted} == wanted
    return True


def ask(system, change, name, seed):
    """The answer, or None if it was lost with the process that was to give it."""
    try:
        return change.act(system, name, seed)
    except httpx.TransportError:
        return None


def carry_out(system, step, name, seed):
    """A step that nothing interrupts."""
    answer = step(system, name, seed)
    assert answer.is_success, answer.text
    if answer.status_code == 202:
        assert system.finished(answer)["state"] in DONE


def is_at_rest(system, follower):
    """Whether nothing is left to do, and everybody knows."""
    if system.unfinished() or accepted_jobs(system.data_dir):
        return False
    disk, shown, aliases = disk_catalog(system.data_dir), system.catalog(), system.aliases()
    return (
        {entry["name"]: entry["revision"] for entry in shown["data"]} == disk.revisions == follower.revisions
        and aliases == disk.aliases == follower.aliases
        and shown["catalog_generation"] == follower.catalog_generation
        and shown["catalog_generation"] >= max(disk.generations.values(), default=0)
    )


class TestCrashMatrix:
    @pytest.mark.timeout(600)
    @pytest.mark.parametrize(("number", "row"), enumerate(MATRIX), ids=map(str, MATRIX))
    def test_what_was_accepted_is_made_and_nothing_is_shown_by_halves(self, system, follower, held, number, row):
        change, name, seed = CHANGES[row.change], f"adapter-{number}", number
        system.start(admission=row.admission)
        for step in change.prepare:
            carry_out(system, step, name, seed)
        assert shows(system, name, change.was)
        generation = system.catalog()["catalog_generation"]

        for fall in row.falls[:1]:
            system.set_trap(fall.of, fall.at, victims=fall.kills)
        answer = ask(system, change, name, seed)
        for nth, fall in enumerate(row.falls):
            if nth > 0:
                system.set_trap(fall.of, fall.at, victims=fall.kills)
                system.restart()
            system.until(lambda fall=fall: system.fell(fall.of, fall.kills), f"{fall.kills} fell {fall.at.what}")
            assert store_problems(system.data_dir) == []
            if row.loses_redis and "redis" in fall.kills:
                system.lose_redis_data()
        system.start()
        system.until(lambda: is_at_rest(system, follower), "everything is at rest")

        assert store_problems(system.data_dir) == []
        assert follower.violations == []
        assert system.catalog()["catalog_generation"] >= generation
        own = [job for job in system.jobs() if job["adapter_name"] == name]
        assert all(job["state"] in DONE for job in own), own
        if answer is not None and answer.status_code == 202 and not row.loses_redis:
            assert answer.json()["job_id"] in {job["job_id"] for job in own}
        assert shows(system, name, change.becomes if row.is_made else change.was)
        if not row.is_made:
            carry_out(system, change.again or change.act, name, seed)
            assert shows(system, name, change.becomes)
        held.append(row)

    def test_the_matrix_as_a_whole(self, held, capsys):
        with capsys.disabled():
            print(f"\ncrash matrix: {len(held)}/{len(MATRIX)}")  # noqa: T201  (what this file is asked to say)

        assert len(held) == len(MATRIX) >= 30
