"""One job while an ingest process works on it: moves, progress from worker threads, and the wish to call it off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from hilora.errors import RequestAborted
from services.registry.job import IngestJob, IngestState
from services.registry.ports import JobStore


class RunningJob:
    """A job, its state in the store, and the safe points of its work.

    Writes follow one another: a progress that was on its way cannot overwrite a later state.

    Args:
        job: the state it begins with.
        jobs: where its states are written.
    """

    def __init__(self, job: IngestJob, jobs: JobStore) -> None:
        self.job = job
        self._jobs = jobs
        self._writing = asyncio.Lock()
        self._is_called_off = threading.Event()
        self._is_abandoned = threading.Event()
        self._report_lock = threading.Lock()
        self._report: tuple[IngestState, float, str] | None = None

    async def put(self, change: Callable[[IngestJob], IngestJob]) -> None:
        """Write the state that a function makes of the present one."""
        async with self._writing:
            changed = change(self.job)
            await self._jobs.put(changed)
            self.job = changed

    async def move(self, state: IngestState, detail: str) -> None:
        """Go on to the next state. Raises RequestAborted as `check` does: each step is a safe point."""
        self.check()
        await self.put(lambda job: job.moved(state, detail=detail))

    def report(self, share: float, detail: str) -> None:
        """Say how far the present state is; from any thread, as often as one likes: few of them are written.

        Args:
            share: part of the state's work that is done, 0 to 1.
            detail: what is being done, for a person.

        Raises:
            RequestAborted: as `check` does.
        """
        self.check()
        with self._report_lock:
            self._report = (self.job.state, share, detail)

    async def flush(self) -> None:
        """Write the latest report, if there is one of the present state."""
        with self._report_lock:
            report, self._report = self._report, None
        if report is None or report[0] is not self.job.state:
            return
        await self.put(lambda job: job.within(report[1], detail=report[2]) if job.state is report[0] else job)

    async def look_for_cancellation(self) -> None:
        """Ask the store whether somebody wants the job called off."""
        if await self._jobs.is_cancel_requested(self.job.job_id):
            self._is_called_off.set()

    def abandon(self) -> None:
        """Let threads that still work on it stop at their next report: nobody waits for them any more."""
        self._is_abandoned.set()

    def check(self) -> None:
        """A safe point of the work.

        Raises:
            RequestAborted: `cancelled`, if the job was called off, or its process let go of it.
        """
        if self._is_called_off.is_set() or self._is_abandoned.is_set():
            raise RequestAborted("The ingest was called off.", code="cancelled")
