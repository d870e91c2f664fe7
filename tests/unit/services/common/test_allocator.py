"""A process that asked for it gives back what its threads have freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")

SCRIPT = """
import threading
import numpy as np
from services.common.allocator import give_back_freed_memory
from hilora_lab.bench.machine import resident_bytes

print(give_back_freed_memory())
before = resident_bytes()
ready, go = threading.Barrier(7), threading.Event()

def work():
    # Freed from the largest on, which is when glibc begins to keep such sizes; what is small stays on top.
    for megabytes in (24, 8, 4, 2):
        np.ones(megabytes * 131_072)
    kept.append(np.ones(10))
    ready.wait()
    go.wait()

kept = []
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
ready.wait()
print(resident_bytes() - before)
go.set()
"""


def run(**environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**inherited, **environment},
    )
    return done.stdout.split()


def test_what_threads_freed_leaves_the_process():
    was_done, grown_bytes = run()

    assert was_done == "True"
    assert int(grown_bytes) < 8 * 1024 * 1024


def test_an_operators_choice_stands():
    assert run(MALLOC_ARENA_MAX="8")[0] == "False"
