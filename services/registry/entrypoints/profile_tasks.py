"""The Celery door to re-profiling: one task that does a little and sends itself again until nothing is left."""

from __future__ import annotations

from typing import Any, Protocol

from celery import Celery

from hilora.errors import Exhausted, Unavailable
from services.registry.entrypoints.tasks import STRICT_REQUEST

REPROFILE_TASK = "registry.reprofile"

_RETRY_SECONDS = 10.0
# A broker that is not there yet is waited for, as by everything else in the process.
_PATIENCE = {"max_retries": None, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 2.0}


class ReprofileRunner(Protocol):
    """What the task needs."""

    def reprofile(self) -> bool:
        """Do some of the work; whether more is left. Raises Exhausted or Unavailable."""
        ...


def register_reprofile_task(app: Celery, runner: ReprofileRunner, *, pause_seconds: float) -> None:
    """Add the task to an application. Between two turns, ingests that wait have theirs."""
    # A message that waits longer than it stays invisible would be doubled.
    longest_wait_seconds = float(app.conf.broker_transport_options["visibility_timeout"]) / 2

    # Not shared: every other application of the process would get the task, with this runner.
    @app.task(name=REPROFILE_TASK, bind=True, max_retries=None, shared=False, Request=STRICT_REQUEST)
    def reprofile(task: Any) -> None:
        """Embed some versions again; see `Reprofiling.run`."""
        try:
            has_more = runner.reprofile()
        except (Exhausted, Unavailable) as error:
            raise task.retry(countdown=min(_RETRY_SECONDS, longest_wait_seconds), exc=error) from error
        if has_more:
            task.apply_async(countdown=min(pause_seconds, longest_wait_seconds))


def start_reprofiling(app: Celery) -> None:
    """Have the task run at least once. Returns when the broker has it."""
    app.send_task(REPROFILE_TASK, retry=True, retry_policy=_PATIENCE)
