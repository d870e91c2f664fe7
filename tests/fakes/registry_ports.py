"""The registry's ports without Redis, Celery or a model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

from hilora.errors import Conflict, RegistryUnavailable
from services.registry.artifact import ProfileSubject, SamplesSource
from services.registry.catalog_entry import (
    CatalogChange,
    CatalogEntry,
    CatalogHeartbeat,
    CatalogNews,
    CatalogResync,
    CatalogSnapshot,
)
from services.registry.job import IngestJob, IngestState
from services.registry.job_durations import JobDurations, bucket_of


class InMemoryCatalogIndex:
    """See `CatalogIndex`; `lose_everything` stands for a Redis that was emptied."""

    def __init__(self, *, max_kept_changes: int = 1000) -> None:
        self._generation: int | None = None
        self._entries: dict[str, CatalogEntry] = {}
        self._aliases: dict[str, str] = {}
        self._changes: deque[CatalogChange] = deque(maxlen=max_kept_changes)
        self._lock = asyncio.Lock()
        self._news = asyncio.Condition()
        self.holder: object | None = None
        self.failing_commits = 0

    async def lose_everything(self) -> None:
        self._generation = None
        self._entries.clear()
        self._aliases = {}
        self._changes.clear()
        self.holder = None

    async def read(self) -> CatalogSnapshot | None:
        if self._generation is None:
            return None
        return CatalogSnapshot(
            catalog_generation=self._generation,
            entries=dict(sorted(self._entries.items())),
            aliases=dict(self._aliases),
        )

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        return self._entries.get(adapter_name)

    async def generation(self) -> int | None:
        return self._generation

    @asynccontextmanager
    async def publishing(self) -> AsyncGenerator[InMemoryTransaction]:
        async with self._lock:
            transaction = InMemoryTransaction(self)
            self.holder = transaction
            yield transaction

    async def follow(self, after_generation: int, *, heartbeat_seconds: float) -> AsyncIterator[CatalogNews]:
        position = after_generation
        while True:
            for change in [item for item in self._changes if item.catalog_generation > position]:
                if change.previous_generation != position:
                    yield CatalogResync(catalog_generation=self._generation or 0)
                    return
                position = change.catalog_generation
                yield change
            if self._generation != position:
                yield CatalogResync(catalog_generation=self._generation or 0)
                return
            try:
                async with self._news:
                    await asyncio.wait_for(self._news.wait(), heartbeat_seconds)
            except TimeoutError:
                if self._generation == position:
                    yield CatalogHeartbeat(catalog_generation=position)

    async def apply(self, transaction: InMemoryTransaction, change: CatalogChange) -> None:
        if self.failing_commits:
            self.failing_commits -= 1
            raise RegistryUnavailable("Redis went away", code="redis_unavailable")
        if self.holder is not transaction or self._generation != change.previous_generation:
            raise Conflict("lost", code="catalog_lock_lost")
        if change.aliases is not None:
            self._aliases = dict(change.aliases)
        elif change.entry is None:
            self._entries.pop(change.adapter_name, None)
        else:
            self._entries[change.adapter_name] = change.entry
        self._changes.append(change)
        self._generation = change.catalog_generation
        await self._announce()

    async def put_all(self, transaction: InMemoryTransaction, snapshot: CatalogSnapshot) -> None:
        if self.holder is not transaction:
            raise Conflict("lost", code="catalog_lock_lost")
        self._entries = dict(snapshot.entries)
        self._aliases = dict(snapshot.aliases)
        self._changes.clear()
        self._generation = snapshot.catalog_generation
        await self._announce()

    async def _announce(self) -> None:
        async with self._news:
            self._news.notify_all()


class InMemoryTransaction:
    """See `CatalogTransaction`."""

    def __init__(self, index: InMemoryCatalogIndex) -> None:
        self._index = index
        self._generation = index._generation

    @property
    def catalog_generation(self) -> int | None:
        return self._generation

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        return await self._index.entry(adapter_name)

    async def is_held(self) -> bool:
        return self._index.holder is self

    async def commit(self, change: CatalogChange) -> None:
        await self._index.apply(self, change)
        self._generation = change.catalog_generation

    async def replace(self, snapshot: CatalogSnapshot) -> None:
        await self._index.put_all(self, snapshot)
        self._generation = snapshot.catalog_generation


class InMemoryLease:
    """See `Lease`; belongs to an `InMemoryJobStore`."""

    def __init__(self, held: dict[str, InMemoryLease], job_id: str) -> None:
        self._held = held
        self._job_id = job_id

    async def extend(self) -> bool:
        return self._held.get(self._job_id) is self

    async def release(self) -> None:
        if self._held.get(self._job_id) is self:
            del self._held[self._job_id]


class InMemoryJobStore:
    """See `JobStore`. A lease does not expire by itself: `expire` does it."""

    def __init__(self, *, max_finished_jobs: int = 100) -> None:
        self._jobs: dict[str, IngestJob] = {}
        self._leases: dict[str, InMemoryLease] = {}
        self._owners: dict[str, str] = {}
        self._cancelling: set[str] = set()
        self._outcomes: Counter[str] = Counter()
        self._durations: Counter[int] = Counter()
        self._total_seconds = 0.0
        self._news = asyncio.Condition()
        self._max_finished_jobs = max_finished_jobs
        self.history: list[tuple[str, str]] = []

    async def submit(self, job: IngestJob, *, fingerprint: str) -> IngestJob:
        owner = self._jobs.get(self._owners.get(fingerprint, ""))
        if owner is not None and not owner.state.is_terminal and owner.job_id not in self._cancelling:
            return owner
        self._owners[fingerprint] = job.job_id
        await self.put(job)
        return job

    async def put(self, job: IngestJob) -> None:
        before = self._jobs.get(job.job_id)
        if job.state.is_terminal and before is not None and not before.state.is_terminal:
            code = f":{job.error.code}" if job.state is IngestState.FAILED and job.error else ""
            self._outcomes[f"{job.state.value}{code}"] += 1
            seconds = max(0.0, job.updated_at - job.created_at)
            self._durations[bucket_of(seconds)] += 1
            self._total_seconds += seconds
            self._cancelling.discard(job.job_id)
        self._jobs[job.job_id] = job
        if before is None or before.state is not job.state:
            self.history.append((job.job_id, job.state.value))
        finished = sorted((item for item in self._jobs.values() if item.state.is_terminal), key=lambda j: j.updated_at)
        for item in finished[: -self._max_finished_jobs]:
            del self._jobs[item.job_id]
        async with self._news:
            self._news.notify_all()

    async def get(self, job_id: str) -> IngestJob | None:
        return self._jobs.get(job_id)

    async def all(self) -> list[IngestJob]:
        return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)

    async def unfinished(self) -> list[IngestJob]:
        return [job for job in reversed(await self.all()) if not job.state.is_terminal]

    async def claim(self, job_id: str) -> InMemoryLease | None:
        if job_id in self._leases:
            return None
        self._leases[job_id] = InMemoryLease(self._leases, job_id)
        return self._leases[job_id]

    async def is_claimed(self, job_id: str) -> bool:
        return job_id in self._leases

    async def expire(self, job_id: str) -> None:
        self._leases.pop(job_id, None)

    async def request_cancel(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None and not job.state.is_terminal:
            self._cancelling.add(job_id)

    async def is_cancel_requested(self, job_id: str) -> bool:
        return job_id in self._cancelling

    async def follow(self, job_id: str, *, heartbeat_seconds: float) -> AsyncIterator[IngestJob | None]:
        shown: IngestJob | None = None
        while (job := self._jobs.get(job_id)) is not None:
            if job != shown:
                shown = job
                yield job
                continue
            if job.state.is_terminal:
                return
            try:
                async with self._news:
                    await asyncio.wait_for(self._news.wait(), heartbeat_seconds)
            except TimeoutError:
                yield None

    async def outcomes(self) -> Mapping[str, int]:
        return dict(self._outcomes)

    async def durations(self) -> JobDurations:
        return JobDurations(counts=dict(self._durations), total_seconds=self._total_seconds)


class InMemoryIdempotencyStore:
    """See `IdempotencyStore`."""

    def __init__(self, *, lease_seconds: float = 10.0) -> None:
        self._lease_seconds = lease_seconds
        self._known: dict[str, tuple[str, str | None]] = {}
        self._ends_at: dict[str, float] = {}
        self._kept: Counter[str] = Counter()

    async def begin(self, key: str, *, body_digest: str) -> str | None:
        self._let_go(key)
        if key not in self._known:
            self._known[key] = (body_digest, None)
            self._ends_at[key] = time.monotonic() + self._lease_seconds
            return None
        digest, job_id = self._known[key]
        if digest != body_digest:
            raise Conflict("another body", code="idempotency_conflict")
        if job_id is None:
            raise Conflict("not yet", code="idempotency_in_progress")
        return job_id

    @asynccontextmanager
    async def keeping(self, key: str, *, body_digest: str) -> AsyncGenerator[None]:
        assert self._known[key] == (body_digest, None)
        self._kept[key] += 1
        try:
            yield
        finally:
            self._kept[key] -= 1
            self._ends_at[key] = time.monotonic() + self._lease_seconds

    async def finish(self, key: str, *, body_digest: str, job_id: str) -> None:
        self._known[key] = (body_digest, job_id)

    async def abandon(self, key: str) -> None:
        if key in self._known and self._known[key][1] is None:
            del self._known[key]

    def _let_go(self, key: str) -> None:
        is_reserved = key in self._known and self._known[key][1] is None
        if is_reserved and not self._kept[key] and time.monotonic() > self._ends_at[key]:
            del self._known[key]


class InMemoryQueue:
    """See `IngestQueue`."""

    def __init__(self) -> None:
        self.job_ids: deque[str] = deque()
        self.is_away = False

    async def enqueue(self, job_id: str) -> None:
        if self.is_away:
            raise RegistryUnavailable("no broker", code="queue_unavailable")
        self.job_ids.append(job_id)

    async def waiting(self) -> int:
        return len(self.job_ids)


class FakeBaseModel:
    """See `BaseModel`: `(out, in)` by module path, given."""

    def __init__(
        self, modules: Mapping[str, tuple[int, int]], *, name: str = "tiny", tied: frozenset[str] = frozenset()
    ) -> None:
        self._modules = dict(modules)
        self._tied = tied
        self.name = name

    def modules(self) -> Mapping[str, tuple[int, int]]:
        return self._modules

    def tied_modules(self) -> frozenset[str]:
        return self._tied


class FakeProfileTexts:
    """Texts of one source, or its refusal."""

    def __init__(self, source: SamplesSource, *answers: tuple[str, ...] | Exception) -> None:
        self.source = source
        self.answers = list(answers)
        """One for each call; the last one stays."""
        self.subjects: list[ProfileSubject] = []

    async def texts(self, subject: ProfileSubject) -> tuple[str, ...]:
        self.subjects.append(subject)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
