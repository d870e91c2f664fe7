"""Ports for processes that a test starts.

A port that the kernel names is free at that moment only: until the process listens on it, a client's connection or
another test process may get it. So ports come from below the range that connections take theirs from, each test process
of a run has a part of it to itself, and none is named twice before all others were.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _LAST = 16_384, 32_767
"""Below what Linux gives to connections (32768 and up), above what services are usually found at."""


def _part(worker_idx: int, num_workers: int) -> range:
    """The ports of one test process among several."""
    size = (_LAST + 1 - _FIRST) // num_workers
    return range(_FIRST + worker_idx * size, _FIRST + (worker_idx + 1) * size)


def _from_anywhere(ports: range) -> itertools.cycle[int]:
    """All of them in order, over and over, from a random one on: another run on the machine hardly meets this one."""
    start = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


# Both variables are pytest-xdist's; without it there is one process.
_PORTS = _from_anywhere(
    _part(
        int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
        int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    )
)


def free_port() -> int:
    """A loopback port that nobody listens on, and that this run names to nobody else."""
    for port in itertools.islice(_PORTS, _LAST + 1 - _FIRST):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"every port from {_FIRST} to {_LAST} is taken")
