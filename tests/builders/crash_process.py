"""The registry's two processes with a trap in each, forked from a process that has imported everything.

What runs is `python -m services.registry` and `python -m services.registry.ingest_worker` as they are, but for a base
and an encoder that load in no time. A start costs a fraction of a second this way, so that dozens fit into one test.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# Imported by the process that forks, so that no child has to.
import celery.apps.worker
import celery.concurrency.solo
import kombu.transport.redis
import uvicorn

from services.registry import __main__ as registry
from services.registry import bootstrap, ingest_process, ingest_worker, intake, process_setup, recovery
from services.registry.infra import redis_catalog
from tests.builders.crash_trap import watch
from tests.builders.light_ingest import HeldEncoder, fake_base

PRELOADED = (celery.apps.worker, celery.concurrency.solo, kombu.transport.redis, uvicorn)
LOCK_LEASE_SECONDS = 1.0
"""How long a dead holder of a lock keeps the others waiting; 15 s in production."""
PENDING_GRACE_SECONDS = 2.0
"""How long a job may wait for an idle ingest process before its message counts as lost; 10 s in production."""

_MAINS: Mapping[str, Callable[[], None]] = {"registry": registry.main, "ingest": ingest_worker.main}
_FORKING = multiprocessing.get_context("forkserver")


def start_process(role: str, environment: Mapping[str, str], *, trap: Path, log: Path) -> ForkServerProcess:
    """Start the registry or its ingest process.

    Args:
        role: `registry` or `ingest`.
        environment: the variables of its settings.
        trap: the file it watches.
        log: what it writes is appended here.
    """
    multiprocessing.set_forkserver_preload([__name__])
    process = _FORKING.Process(target=_run, args=(role, dict(environment), trap, log), name=role, daemon=True)
    process.start()
    return process


def _run(role: str, environment: Mapping[str, str], trap: Path, log: Path) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    HeldEncoder.hold = trap.with_name("hold")
    process_setup.TransformersBaseModel = fake_base  # pyright: ignore[reportAttributeAccessIssue]
    ingest_process.SentenceTransformerEncoder = HeldEncoder  # pyright: ignore[reportAttributeAccessIssue]
    redis_catalog._LOCK_LEASE_SECONDS = LOCK_LEASE_SECONDS  # pyright: ignore[reportPrivateUsage]
    bootstrap._STORE_LEASE_SECONDS = LOCK_LEASE_SECONDS  # pyright: ignore[reportPrivateUsage]
    intake.PENDING_GRACE_SECONDS = recovery.PENDING_GRACE_SECONDS = PENDING_GRACE_SECONDS
    watch(trap)
    _MAINS[role]()
