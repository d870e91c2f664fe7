"""Worker processes that are there within a second: forked from one that has done the imports.

Importing torch and transformers takes most of a small worker's start. A deployment hides it behind a spare or a surge
replica; here one process imports and then forks at each request. What is forked is a whole worker, `services.worker`'s
own `main`, with an engine, a port and a life of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Self

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_IMPORTED = ("services.worker.bootstrap", "transformers.models.llama.modeling_llama", "transformers.generation")


class WorkerSpares:
    """The process that forks. A context manager; its workers end with it.

    Args:
        log: what it and its workers print.
    """

    def __init__(self, log: BinaryIO) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.builders.worker_spares"],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("HILORA_")},
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, environment: Mapping[str, str]) -> int:
        """The process id of a new worker with these variables. Blocks for the imports, the first time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dict(environment)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks workers ended"
        return int(line)


def _run_worker(environment: Mapping[str, str], parent: int) -> int:
    """In the fork: become a worker that its parent does not outlive."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.update(environment)
    return importlib.import_module("services.worker.__main__").main()


def main() -> None:
    """A line of variables in, the process id of a worker out, until the input ends."""
    for name in _IMPORTED:
        importlib.import_module(name)
    # Nobody waits for the workers: the kernel is told to forget them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getpid()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_run_worker(json.loads(line), parent))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
