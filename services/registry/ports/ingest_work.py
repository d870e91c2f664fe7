"""Ports of ingests as work: their states, the queue, who sent them and who asked for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.registry.audit import AuditEvent, AuditPage
from services.registry.job import IngestJob
from services.registry.job_durations import JobDurations


class Lease(Protocol):
    """The right to work on one job for a short time."""

    async def extend(self) -> bool:
        """Keep it for another period; `False` if it was lost."""
        ...

    async def release(self) -> None:
        """Give it back; nothing happens if it was lost."""
        ...


class JobStore(Protocol):
    """The observable states of ingests; keeps a bounded number of finished ones."""

    async def submit(self, job: IngestJob, *, fingerprint: str) -> IngestJob:
        """Create a job, unless an unfinished one does the same work.

        Args:
            job: a PENDING job.
            fingerprint: equal for two jobs exactly if they would do the same.

        Returns:
            The job itself; or the unfinished one of the same fingerprint, and then nothing is created.
        """
        ...

    async def put(self, job: IngestJob) -> None:
        """Create or replace a job's state. The first time that it is terminal counts as its outcome."""
        ...

    async def get(self, job_id: str) -> IngestJob | None:
        """The state of a job."""
        ...

    async def all(self) -> list[IngestJob]:
        """Every known job, newest first."""
        ...

    async def unfinished(self) -> list[IngestJob]:
        """The jobs that still have work to be done, oldest first."""
        ...

    async def claim(self, job_id: str) -> Lease | None:
        """The right to work on a job, or `None` if another process has it."""
        ...

    async def is_claimed(self, job_id: str) -> bool:
        """Whether some process works on a job."""
        ...

    async def request_cancel(self, job_id: str) -> None:
        """Ask whoever works on a job to call it off; forgotten once it is terminal."""
        ...

    async def is_cancel_requested(self, job_id: str) -> bool:
        """Whether an unfinished job was asked to be called off."""
        ...

    def follow(self, job_id: str, *, heartbeat_seconds: float) -> AsyncIterator[IngestJob | None]:
        """A job's present state, then each further one; `None` where nothing changed for a while.

        States in quick succession may be left out, the terminal one never: it ends the stream, as does a job that is
        not known (any more).
        """
        ...

    async def outcomes(self) -> Mapping[str, int]:
        """How many jobs ended how: READY, CANCELLED, `FAILED:<code>`; of seldom codes together `FAILED:other`."""
        ...

    async def durations(self) -> JobDurations:
        """How long the jobs of `outcomes` took from their acceptance to their end."""
        ...


class IdempotencyStore(Protocol):
    """Which job a client's idempotency key already made, for a day."""

    async def begin(self, key: str, *, body_digest: str) -> str | None:
        """Reserve a key for one request.

        Args:
            key: the client's key, told apart by who sent it.
            body_digest: digest of what was sent.

        Returns:
            The job that the key made before; `None` if the caller is the first, who then has to call `finish` or
            `abandon`, and to stay within `keeping` until then: a reservation that nobody keeps is soon free again.

        Raises:
            Conflict: `idempotency_conflict` if the key came with another body, `idempotency_in_progress` if the first
                request with it is still being answered.
        """
        ...

    def keeping(self, key: str, *, body_digest: str) -> AbstractAsyncContextManager[None]:
        """Keep a reservation for the time of a block, however long that takes."""
        ...

    async def finish(self, key: str, *, body_digest: str, job_id: str) -> None:
        """Remember what a key made."""
        ...

    async def abandon(self, key: str) -> None:
        """Free a key whose request was refused."""
        ...


class AuditLog(Protocol):
    """Every change and who made it; append only. Blocking."""

    def append(self, event: AuditEvent) -> None:
        """Make an event durable. Raises OSError if it cannot be written."""
        ...

    def page(self, *, before: str | None, limit: int) -> AuditPage:
        """Events, newest first.

        Args:
            before: cursor of an earlier page; the newest events if `None`.
            limit: most events of the page.

        Raises:
            InvalidInput: `invalid_cursor`.
        """
        ...


class IngestQueue(Protocol):
    """Hands jobs to the ingest process."""

    async def enqueue(self, job_id: str) -> None:
        """Have the job run at least once."""
        ...

    async def waiting(self) -> int:
        """Number of jobs that no process has taken yet."""
        ...
