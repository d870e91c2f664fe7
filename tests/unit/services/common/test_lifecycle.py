from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.lifecycle import ComponentGroup, run_until_signal


class Recorder:
    def __init__(self, name, events, *, fails=False, fails_to_stop=False, stop_seconds=0.0):
        self.name = name
        self.events = events
        self.fails = fails
        self.fails_to_stop = fails_to_stop
        self.stop_seconds = stop_seconds

    async def start(self):
        if self.fails:
            raise OSError(self.name)
        self.events.append(f"start {self.name}")

    async def stop(self, *, grace_seconds):
        if self.fails_to_stop:
            raise OSError(self.name)
        await asyncio.sleep(self.stop_seconds)
        self.events.append(f"stop {self.name}")


class TestComponentGroup:
    async def test_starts_in_order_and_stops_in_reverse(self):
        events = []
        group = ComponentGroup([Recorder("a", events), Recorder("b", events)])

        await group.start()
        await group.stop(grace_seconds=1)

        assert events == ["start a", "start b", "stop b", "stop a"]

    async def test_a_failed_start_leaves_nothing_running(self):
        events = []
        group = ComponentGroup([Recorder("a", events), Recorder("b", events, fails=True)])

        with pytest.raises(OSError, match="b"):
            await group.start()

        assert events == ["start a", "stop a"]

    async def test_one_that_fails_to_stop_does_not_keep_the_others(self):
        events = []
        group = ComponentGroup([Recorder("a", events), Recorder("b", events, fails_to_stop=True)])
        await group.start()

        await group.stop(grace_seconds=1)

        assert events[-1] == "stop a"

    async def test_stopping_twice_is_harmless(self):
        events = []
        group = ComponentGroup([Recorder("a", events)])
        await group.start()

        await group.stop(grace_seconds=1)
        await group.stop(grace_seconds=1)

        assert events.count("stop a") == 1


_SIGNALLED = """
import asyncio, os, signal, sys
from services.common.lifecycle import run_until_signal
from tests.unit.services.common.test_lifecycle import Recorder

async def main(stop_seconds, grace_seconds, *kill_at):
    events = []
    for seconds in kill_at:
        asyncio.get_running_loop().call_later(seconds, os.kill, os.getpid(), signal.SIGTERM)
    await run_until_signal(Recorder("a", events, stop_seconds=stop_seconds), grace_seconds=grace_seconds)
    print(*events, sep=", ")

asyncio.run(main(*map(float, sys.argv[1:])))
"""


def signalled(*numbers):
    """What happened in a process that sent SIGTERM to itself: not in this one, which would end with all its tests if
    the signal were not handled."""
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, *map(str, numbers)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return done.stdout.splitlines()[-1]


class TestRunUntilSignal:
    def test_sigterm_drains(self):
        assert signalled(0.0, 1.0, 0.05) == "start a, stop a"

    def test_a_second_signal_cuts_the_drain_short(self):
        assert signalled(60.0, 60.0, 0.05, 0.3) == "start a"

    async def test_a_failed_start_is_raised(self):
        with pytest.raises(OSError, match="broken"):
            await run_until_signal(Recorder("broken", [], fails=True), grace_seconds=1)
