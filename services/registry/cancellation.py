"""Calls ingests off: one that waits at once, one that runs at its next safe point."""

from __future__ import annotations

import asyncio

from hilora.errors import Conflict, UnknownAdapter
from services.common.log import get_logger
from services.registry.job import IngestJob, is_job_id
from services.registry.ports import JobStore, StagingArea

_log = get_logger(__name__)


class JobCancellation:
    """The way out of an ingest.

    Args:
        jobs: the observable states.
        staging: the files of unfinished jobs.
    """

    def __init__(self, *, jobs: JobStore, staging: StagingArea) -> None:
        self._jobs = jobs
        self._staging = staging

    async def cancel(self, job_id: str) -> IngestJob:
        """Call a job off.

        Returns:
            The job: CANCELLED if nobody works on it, else in its present state. A job that is about to be published
            may still become READY.

        Raises:
            UnknownAdapter: `unknown_job`.
            Conflict: `job_finished`, if it is over already.
        """
        job = await known_job(self._jobs, job_id)
        _refuse_finished(job)
        # Before the claim: who claims the job in between finds the wish.
        await self._jobs.request_cancel(job_id)
        lease = await self._jobs.claim(job_id)
        if lease is None:
            return job
        try:
            current = await known_job(self._jobs, job_id)
            _refuse_finished(current)
            cancelled = current.cancelled()
            await self._jobs.put(cancelled)
            await asyncio.to_thread(self._staging.discard, job_id)
            _log.info("ingest_cancelled", job_id=job_id, adapter=current.adapter_name)
            return cancelled
        finally:
            await lease.release()


async def known_job(jobs: JobStore, job_id: str) -> IngestJob:
    """A job by its identity. Raises UnknownAdapter (`unknown_job`)."""
    job = await jobs.get(job_id) if is_job_id(job_id) else None
    if job is None:
        raise UnknownAdapter(
            f"There is no job {job_id[:64]!r}.",
            code="unknown_job",
            remedy="GET /v1/jobs lists those that are known; old finished ones are forgotten.",
            place="job_id",
        )
    return job


def _refuse_finished(job: IngestJob) -> None:
    if job.state.is_terminal:
        raise Conflict(
            f"The job is {job.state} already.",
            code="job_finished",
            remedy="An adapter that is READY is taken out by DELETE /v1/adapters/{name}.",
            place="job_id",
        )
