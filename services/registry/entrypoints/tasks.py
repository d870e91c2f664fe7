"""The Celery door: one task, JSON only, acknowledged after the work, retried exactly where trying again can help.

Three nets hold a job whose process dies, and the claim on the job lets each of them be as eager as it likes:
a message that was not acknowledged returns to the queue after the visibility time-out; the registry hands a job whose
claim ran out to the queue again (`recovery`); and the staging folder outlives both.
"""

from __future__ import annotations

from typing import Any, Protocol

from celery import Celery

from hilora.errors import Exhausted, HiloraError, Unavailable

INGEST_TASK = "registry.ingest"
INGEST_QUEUE = "registry-ingest"
_KEY_PREFIX = "hilora:celery:"
INGEST_QUEUE_KEY = f"{_KEY_PREFIX}{INGEST_QUEUE}"
"""The Redis list of messages that no process has taken."""

STRICT_REQUEST = "services.registry.entrypoints.celery_request:StrictRequest"
"""Option `Request` of every task. By name: only the process that runs tasks needs the class."""

MAX_RETRIES = 6
_MAX_BACKOFF_SECONDS = 60.0


class IngestRunner(Protocol):
    """What the task needs: the asynchronous use case, called from a synchronous process."""

    def run(self, job_id: str) -> None:
        """Do a job's work. Raises Exhausted or Unavailable if trying again later is sensible."""
        ...

    def give_up(self, job_id: str, error: HiloraError) -> None:
        """Fail a job whose attempts are used up."""
        ...


def build_celery_app(broker_url: str, *, visibility_seconds: float) -> Celery:
    """The application that the registry sends through and the ingest process runs.

    Args:
        broker_url: see `broker_url_of`.
        visibility_seconds: after this long an unacknowledged message is given to another process. An ingest may take
            longer: whoever gets its message then finds it claimed, and lets it be.
    """
    app = Celery("hilora-registry", broker=broker_url, backend=None, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        # A message whose process is killed returns to the queue; the claim on its job keeps it from running twice.
        task_reject_on_worker_lost=True,
        task_default_queue=INGEST_QUEUE,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Commands to workers over the broker: nobody sends them, and whoever can write to Redis could.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": _KEY_PREFIX,
            "socket_connect_timeout": 5,
            "visibility_timeout": visibility_seconds,
            # Kombu looks for such messages every 100 s by default, whatever the time-out is.
            "unacked_restore_interval": max(1.0, min(10.0, visibility_seconds / 2)),
            "unacked_restore_throttle": 1,
        },
    )
    return app


def backoff_seconds(error: HiloraError, *, attempt: int, visibility_seconds: float) -> float:
    """How long to wait before the next attempt: doubling, at least what the error asks for, always bounded.

    A message that waits is not acknowledged either: waiting longer than it stays invisible would double it.
    """
    wanted = error.retry_after_seconds if isinstance(error, Exhausted) else 0.0
    return min(max(wanted, 2.0**attempt), _MAX_BACKOFF_SECONDS, visibility_seconds / 2)


def register_ingest_task(app: Celery, runner: IngestRunner) -> None:
    """Add the ingest task to an application."""
    visibility_seconds = float(app.conf.broker_transport_options["visibility_timeout"])

    # Not shared: every other application of the process would get the task, with this runner.
    @app.task(name=INGEST_TASK, bind=True, max_retries=MAX_RETRIES, shared=False, Request=STRICT_REQUEST)
    def ingest(task: Any, job_id: str) -> None:
        """Run one job; see `Ingestion.run`."""
        try:
            runner.run(job_id)
        except (Exhausted, Unavailable) as error:
            attempt = int(task.request.retries)
            if attempt >= MAX_RETRIES:
                runner.give_up(job_id, error)
                return
            countdown = backoff_seconds(error, attempt=attempt, visibility_seconds=visibility_seconds)
            raise task.retry(countdown=countdown, exc=error) from error


def run_ingest_process(app: Celery, *, num_concurrent: int, log_level: str) -> None:
    """Consume the queue until SIGTERM or SIGINT; the jobs in progress are finished first.

    Args:
        app: with the task registered.
        num_concurrent: how many jobs run at a time. Several share the process as threads: a second process would load
            base and encoder again, and torch computes outside the interpreter's lock.
        log_level: of Celery's own events.
    """
    worker = app.Worker(
        pool="solo" if num_concurrent == 1 else "threads",
        concurrency=num_concurrent,
        queues=[INGEST_QUEUE],
        # Talk among several Celery workers: none of it is needed, and it delays the start by seconds.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=log_level,
        quiet=True,
    )
    worker.start()
