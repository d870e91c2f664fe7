"""Finds jobs that nobody works on any more and sets them going, or says what became of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from hilora.errors import HiloraError, Unavailable
from services.common.log import get_logger
from services.common.tasks import end_tasks
from services.registry.intake import PENDING_GRACE_SECONDS
from services.registry.job import IngestJob, IngestState, pending_job
from services.registry.ports import ArtifactStore, IngestQueue, JobStore, RegistrationStore, StagingArea
from services.registry.registration import VersionState

_log = get_logger(__name__)


class JobRecovery:
    """Keeps accepted adapters moving, whatever died.

    Args:
        staging: the accepted files; the truth about what is still to be done.
        jobs: the observable states.
        queue: hands jobs to the ingest process.
        registrations: tells which job made an adapter.
        artifacts: may hold half-written folders.
        interval_seconds: time between two looks at jobs in progress.
    """

    def __init__(
        self,
        *,
        staging: StagingArea,
        jobs: JobStore,
        queue: IngestQueue,
        registrations: RegistrationStore,
        artifacts: ArtifactStore,
        interval_seconds: float,
    ) -> None:
        self._staging = staging
        self._jobs = jobs
        self._queue = queue
        self._registrations = registrations
        self._artifacts = artifacts
        self._interval_seconds = interval_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what was interrupted, then keep watching."""
        await self.resume()
        self._task = asyncio.create_task(self._watch(), name="job-recovery")

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (part of every component's signature)
        """Stop watching."""
        if self._task is not None:
            await end_tasks(self._task)
            self._task = None

    async def resume(self) -> None:
        """At a start: bring Redis into agreement with the staging folders, and queue every job nobody works on."""
        await asyncio.to_thread(self._staging.sweep)
        await asyncio.to_thread(self._artifacts.sweep)
        for request in await asyncio.to_thread(self._staging.accepted):
            job = await self._jobs.get(request.job_id)
            if job is None:
                await self._jobs.put(pending_job(request, due_at=0.0))
            elif job.state.is_terminal:
                await asyncio.to_thread(self._staging.discard, request.job_id)
        for job in await self._jobs.unfinished():
            if not await self._jobs.is_claimed(job.job_id):
                await self._take_up(job)

    async def look(self) -> None:
        """While running: queue jobs whose process died, and those whose message or record was lost."""
        unfinished = await self._jobs.unfinished()
        unfinished += await self._forgotten({job.job_id for job in unfinished})
        if not unfinished:
            return
        is_queue_empty = await self._queue.waiting() == 0
        for job in unfinished:
            is_lost = is_queue_empty and time.time() > job.due_at
            if (job.state is not IngestState.PENDING or is_lost) and not await self._jobs.is_claimed(job.job_id):
                # Its process may have finished it between the two questions.
                current = await self._jobs.get(job.job_id)
                if current is not None and not current.state.is_terminal:
                    await self._take_up(current)

    async def _forgotten(self, known: set[str]) -> list[IngestJob]:
        """Jobs whose files wait although the store, having lost its data, knows nothing of them: noted anew."""
        forgotten: list[IngestJob] = []
        for request in await asyncio.to_thread(self._staging.accepted, besides=known):
            # A request that was accepted a moment ago is about to be noted by the intake itself.
            is_recent = time.time() - request.created_at < PENDING_GRACE_SECONDS
            if is_recent or await self._jobs.get(request.job_id) is not None:
                continue
            job = pending_job(request, due_at=0.0)
            await self._jobs.put(job)
            _log.warning("job_forgotten", job_id=job.job_id, adapter=job.adapter_name)
            forgotten.append(job)
        return forgotten

    async def _take_up(self, job: IngestJob) -> None:
        if await asyncio.to_thread(self._staging.request, job.job_id) is None:
            await self._settle(job)
            return
        due_at = time.time() + PENDING_GRACE_SECONDS
        await self._jobs.put(job.requeued(detail="waiting for the ingest process", due_at=due_at))
        await self._queue.enqueue(job.job_id)
        _log.info("ingest_resumed", job_id=job.job_id, adapter=job.adapter_name, was=job.state)

    async def _settle(self, job: IngestJob) -> None:
        """A job without files was either published, and then a version names it, or its files are lost."""
        registration = await asyncio.to_thread(self._registrations.get, job.adapter_name)
        version = registration.made_by(job.job_id) if registration else None
        if registration is not None and version is not None:
            # Nothing is checked again: the report of the attempt that published it stays.
            queued = replace(job.requeued(detail="registered", due_at=0.0), report=job.report)
            adapter_id = registration.adapter_id(version)
            is_held_back = version.state is VersionState.QUARANTINED
            await self._jobs.put(queued.quarantined(adapter_id) if is_held_back else queued.ready(adapter_id))
            return
        if await self._jobs.is_cancel_requested(job.job_id):
            await self._jobs.put(job.cancelled())
            return
        error = HiloraError(
            f"The ingest of {job.adapter_name} was interrupted and its files are gone.",
            code="ingest_interrupted",
            remedy="Upload the adapter again.",
        )
        await self._jobs.put(job.failed(error))
        _log.warning("ingest_interrupted", job_id=job.job_id, adapter=job.adapter_name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.look()
            except Unavailable as error:
                _log.warning("recovery_postponed", reason=error.message)
            except Exception:
                # Watching must outlive every surprise: without it, an interrupted job would wait for a restart.
                _log.exception("recovery_failed")
