"""The Celery door: one task, JSON only, acknowledged after the work, retried exactly where trying again can help."""

from __future__ import annotations

from typing import Any, Protocol

from celery import Celery

from hilora.errors import Exhausted, HiloraError, Unavailable

INGEST_TASK = "registry.ingest"
INGEST_QUEUE = "registry-ingest"
_KEY_PREFIX = "hilora:celery:"
INGEST_QUEUE_KEY = f"{_KEY_PREFIX}{INGEST_QUEUE}"
"""The Redis list of messages that no process has taken."""

MAX_RETRIES = 6
_MAX_BACKOFF_SECONDS = 60


class IngestRunner(Protocol):
    """What the task needs: the asynchronous use case, called from a synchronous process."""

    def run(self, job_id: str) -> None:
        """Do a job's work. Raises Exhausted or Unavailable if trying again later is sensible."""
        ...

    def give_up(self, job_id: str, error: HiloraError) -> None:
        """Fail a job whose attempts are used up."""
        ...


def build_celery_app(broker_url: str) -> Celery:
    """The application that the registry sends through and the ingest process runs."""
    app = Celery("hilora-registry", broker=broker_url, backend=None, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
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
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"global_keyprefix": _KEY_PREFIX, "socket_connect_timeout": 5},
    )
    return app


def register_ingest_task(app: Celery, runner: IngestRunner) -> None:
    """Add the ingest task to an application."""

    @app.task(name=INGEST_TASK, bind=True, max_retries=MAX_RETRIES)
    def ingest(task: Any, job_id: str) -> None:
        """Run one job; see `Ingestion.run`."""
        try:
            runner.run(job_id)
        except (Exhausted, Unavailable) as error:
            attempt = int(task.request.retries)
            if attempt >= MAX_RETRIES:
                runner.give_up(job_id, error)
                return
            wait_seconds = error.retry_after_seconds if isinstance(error, Exhausted) else 0.0
            countdown = max(wait_seconds, min(_MAX_BACKOFF_SECONDS, 2**attempt))
            raise task.retry(countdown=countdown, exc=error) from error


def run_ingest_process(app: Celery, *, log_level: str) -> None:
    """Consume the queue until SIGTERM or SIGINT; the job in progress is finished first."""
    worker = app.Worker(
        pool="solo",
        concurrency=1,
        queues=[INGEST_QUEUE],
        # Talk among several Celery workers: none of it is needed, and it delays the start by seconds.
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=log_level,
        quiet=True,
    )
    worker.start()
