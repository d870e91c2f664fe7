from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress

import pytest

from hilora.errors import Unavailable
from services.standalone.process_record import group_members
from services.standalone.supervisor import SupervisedProcess

SLEEPER = "import time; time.sleep(600)"
DEAF_SLEEPER = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
PARENT_OF_SLEEPER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"


def supervised(folder, code, **arguments):
    return SupervisedProcess(
        name="child",
        command=[sys.executable, "-c", code],
        run_folder=folder,
        log_folder=folder,
        **arguments,
    )


async def until(condition, *, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


class TestLife:
    async def test_a_child_that_dies_is_started_again(self, tmp_path):
        child = supervised(tmp_path, SLEEPER)
        await child.start()
        first = child.pid
        try:
            os.kill(first, signal.SIGKILL)

            await until(lambda: child.pid not in {None, first})
        finally:
            await child.stop(grace_seconds=2)

        assert not group_members(first)

    async def test_stopping_ends_the_children_of_the_child(self, tmp_path):
        child = supervised(tmp_path, PARENT_OF_SLEEPER)
        await child.start()
        group = child.pid
        await until(lambda: len(group_members(group)) == 2)

        await child.stop(grace_seconds=2)

        assert group_members(group) == []

    async def test_a_child_that_does_not_listen_is_killed(self, tmp_path):
        child = supervised(tmp_path, DEAF_SLEEPER)
        await child.start()
        group = child.pid
        await until(lambda: "deaf" in (tmp_path / "child.log").read_text())

        began = time.monotonic()
        await child.stop(grace_seconds=0.3)

        assert group_members(group) == []
        assert time.monotonic() - began < 5

    async def test_stopping_twice_is_harmless(self, tmp_path):
        child = supervised(tmp_path, SLEEPER)
        await child.start()
        await child.stop(grace_seconds=2)
        await child.stop(grace_seconds=2)

    async def test_what_it_says_is_in_its_log(self, tmp_path):
        child = supervised(tmp_path, "print('hello from below', flush=True); " + SLEEPER)
        await child.start()
        await until(lambda: "hello from below" in (tmp_path / "child.log").read_text())
        await child.stop(grace_seconds=2)


class TestReadiness:
    async def test_a_child_that_ends_at_once_is_reported_with_its_last_words(self, tmp_path):
        async def never():
            return False

        child = supervised(tmp_path, "raise SystemExit('no such luck')", is_ready=never)

        with pytest.raises(Unavailable, match="no such luck") as failure:
            await child.start()

        assert failure.value.code == "child_failed"
        assert "child.log" in failure.value.remedy

    async def test_a_child_that_is_never_ready_is_ended(self, tmp_path):
        pids = []

        async def never():
            pids.append(child.pid)
            return False

        child = supervised(tmp_path, SLEEPER, is_ready=never, ready_seconds=0.2)

        with pytest.raises(Unavailable, match="not ready"):
            await child.start()

        assert group_members(pids[0]) == []


class TestAKilledOwner:
    OWNER = """
import asyncio, sys
from pathlib import Path
from services.standalone.supervisor import SupervisedProcess

async def main():
    folder = Path(sys.argv[1])
    child = SupervisedProcess(
        name="child", command=[sys.executable, "-c", sys.argv[2]], run_folder=folder, log_folder=folder
    )
    await child.start()
    print("PID", child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

    async def killed_owner(self, folder, code):
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self.OWNER, str(folder), code, stdout=asyncio.subprocess.PIPE
        )
        pid = int(await anext(line.split()[1] async for line in owner.stdout if line.startswith(b"PID ")))
        # The tether holds once the command runs.
        await until(lambda: (folder / "child.log").stat().st_size > 0)
        owner.kill()
        await owner.wait()
        return pid

    async def test_its_child_ends_with_it(self, tmp_path):
        pid = await self.killed_owner(tmp_path, "print('here', flush=True); " + SLEEPER)

        await until(lambda: group_members(pid) == [], seconds=5)

    async def test_a_child_that_ignored_its_end_is_ended_by_the_next_owner(self, tmp_path):
        leftover = await self.killed_owner(tmp_path, DEAF_SLEEPER)
        assert group_members(leftover) == [leftover]
        child = supervised(tmp_path, SLEEPER)
        try:
            await asyncio.wait_for(child.start(), timeout=15)

            assert group_members(leftover) == []
        finally:
            await child.stop(grace_seconds=2)
            with suppress(ProcessLookupError):
                os.kill(leftover, signal.SIGKILL)
