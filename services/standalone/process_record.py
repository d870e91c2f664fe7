"""Notes which child processes run, so that those of a killed predecessor can be ended before new ones start.

A record holds the process's number, its start time and the machine's boot id: a number alone may belong to somebody
else by now (proc(5): `starttime` in `/proc/<pid>/stat`).
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TIME_FIELD = 19  # of the fields after the command's name, which is field 2 and may hold anything
_STATE_FIELD = 0
_GROUP_FIELD = 2
_POLL_SECONDS = 0.02


def write_record(path: Path, pid: int) -> None:
    """Note a process that leads its own process group; one that ended already leaves nothing to note."""
    fields = _stat(pid)
    if not fields:
        return
    record = {"pid": pid, "start_time": fields[_START_TIME_FIELD], "boot_id": _boot_id()}
    path.write_text(json.dumps(record), encoding="utf-8")


def end_recorded(path: Path, *, grace_seconds: float) -> bool:
    """End the noted process and its whole group, if it still runs. Blocking.

    Returns:
        whether there was something to end.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        pid, start_time, boot_id = int(record["pid"]), str(record["start_time"]), str(record["boot_id"])
    except (OSError, ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return False
    was_running = boot_id == _boot_id() and _is_still(pid, start_time) and bool(group_members(pid))
    if was_running:
        end_group(pid, grace_seconds=grace_seconds)
    path.unlink(missing_ok=True)
    return was_running


def end_group(leader_pid: int, *, grace_seconds: float) -> None:
    """SIGTERM to a process group, SIGKILL to what is left after `grace_seconds`. Blocking."""
    for number, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(leader_pid, number)
        deadline = time.monotonic() + patience
        while group_members(leader_pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not group_members(leader_pid):
            return


def group_members(leader_pid: int) -> list[int]:
    """The living processes of a group; zombies are not living."""
    members: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and fields[_GROUP_FIELD] == str(leader_pid) and fields[_STATE_FIELD] not in {"Z", "X"}:
                members.append(int(entry.name))
    return members


def _is_still(pid: int, start_time: str) -> bool:
    """Whether the noted process runs, or died while its group lives on (a number is not reused before that)."""
    fields = _stat(pid)
    return not fields or fields[_START_TIME_FIELD] == start_time


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` after the command's name; empty if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
