"""Runs a command that cannot outlive its parent: `python -m services.standalone.tethered_exec PARENT_PID COMMAND...`.

The kernel is told to signal this process when its parent thread ends (prctl(2), PR_SET_PDEATHSIG), however it ends;
the setting survives execve(2) into the command. A step of its own, because code between fork and exec in a process
with threads can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Tie this process to its parent and become the command. Returns only if that is impossible."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.stderr.write(f"prctl: {os.strerror(ctypes.get_errno())}\n")
        return 1
    # The parent may have ended before the kernel knew of our wish.
    if os.getppid() != parent_pid:
        return 1
    try:
        os.execv(command[0], command)  # noqa: S606  (the command is our own parent's)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
