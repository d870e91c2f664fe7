"""The states of ingests in Redis.

    hilora:jobs                     hash: job id -> job (JSON)
    hilora:jobs:open                set of the ids of unfinished jobs
    hilora:jobs:finished            sorted set of finished jobs by time; the oldest leave when there are too many
    hilora:jobs:cancelling          set of the ids of unfinished jobs that were asked to stop
    hilora:jobs:news                bounded stream of states, for those who follow a job
    hilora:jobs:outcomes            hash: how jobs ended -> number of them
    hilora:jobs:durations           hash: index of a bound -> number of jobs that took so long; `total` -> their seconds
    hilora:jobs:submission:<digest> which job does the work of a fingerprint
    hilora:jobs:lease:<id>          who works on a job

What is still to be done is known from the staging folders as well: losing all of this loses no adapter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.asyncio import Redis

from services.registry.infra.records import job_from_json, job_to_json
from services.registry.infra.redis_connection import KEY_PREFIX, RedisLock, translated_redis_errors
from services.registry.job import IngestJob, IngestState
from services.registry.job_durations import JobDurations, bucket_of

_JOBS = f"{KEY_PREFIX}jobs"
_OPEN = f"{KEY_PREFIX}jobs:open"
_FINISHED = f"{KEY_PREFIX}jobs:finished"
_CANCELLING = f"{KEY_PREFIX}jobs:cancelling"
_NEWS = f"{KEY_PREFIX}jobs:news"
_OUTCOMES = f"{KEY_PREFIX}jobs:outcomes"
_DURATIONS = f"{KEY_PREFIX}jobs:durations"
_SUBMISSION = f"{KEY_PREFIX}jobs:submission:"
_LEASE = f"{KEY_PREFIX}jobs:lease:"

_MAX_NEWS = 2000
_MAX_OUTCOMES = 64
"""Distinct outcomes that are counted: our codes are fewer, and a label must not grow without end."""
_TOTAL = "total"
"""As the script below calls it."""
_SUBMISSION_SECONDS = 7 * 24 * 3600

# ARGV: job id, job, time of finishing or '', finished jobs to keep, news to keep, outcome, outcomes to keep,
# index of the duration's bound, duration in seconds
_PUT = """
redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
redis.call('xadd', KEYS[5], 'MAXLEN', '~', ARGV[5], '*', 'id', ARGV[1], 'job', ARGV[2])
if ARGV[3] == '' then
  redis.call('sadd', KEYS[3], ARGV[1])
  redis.call('zrem', KEYS[2], ARGV[1])
  return 0
end
redis.call('srem', KEYS[4], ARGV[1])
if redis.call('srem', KEYS[3], ARGV[1]) == 1 then
  local outcome = ARGV[6]
  if redis.call('hexists', KEYS[6], outcome) == 0 and redis.call('hlen', KEYS[6]) >= tonumber(ARGV[7]) then
    outcome = 'FAILED:other'
  end
  redis.call('hincrby', KEYS[6], outcome, 1)
  redis.call('hincrby', KEYS[7], ARGV[8], 1)
  redis.call('hincrbyfloat', KEYS[7], 'total', ARGV[9])
end
redis.call('zadd', KEYS[2], ARGV[3], ARGV[1])
local too_old = redis.call('zrange', KEYS[2], 0, -1 - tonumber(ARGV[4]))
for _, id in ipairs(too_old) do
  redis.call('hdel', KEYS[1], id)
  redis.call('zrem', KEYS[2], id)
end
return #too_old
"""

# The owner of a fingerprint keeps it while it is unfinished and nobody called it off.
# ARGV: job id, job, seconds to remember the fingerprint, news to keep
_SUBMIT = """
local owner = redis.call('get', KEYS[5])
if owner and owner ~= ARGV[1] and redis.call('sismember', KEYS[2], owner) == 1
    and redis.call('sismember', KEYS[3], owner) == 0 then
  local found = redis.call('hget', KEYS[1], owner)
  if found then return found end
end
redis.call('set', KEYS[5], ARGV[1], 'EX', ARGV[3])
redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
redis.call('sadd', KEYS[2], ARGV[1])
redis.call('xadd', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'id', ARGV[1], 'job', ARGV[2])
return ARGV[2]
"""

_REQUEST_CANCEL = """
if redis.call('sismember', KEYS[1], ARGV[1]) == 1 then redis.call('sadd', KEYS[2], ARGV[1]) end
return 0
"""


class RedisJobStore:
    """See `JobStore`.

    Args:
        redis: client; stays the caller's to close.
        lease_seconds: how long a dead ingest process keeps its job.
        max_finished_jobs: how many finished jobs are kept for inspection.
    """

    def __init__(self, redis: Redis, *, lease_seconds: float, max_finished_jobs: int) -> None:
        self._redis: Any = redis
        self._lease_seconds = lease_seconds
        self._max_finished_jobs = max_finished_jobs

    async def submit(self, job: IngestJob, *, fingerprint: str) -> IngestJob:
        """See `JobStore.submit`."""
        keys = (_JOBS, _OPEN, _CANCELLING, _NEWS, f"{_SUBMISSION}{fingerprint}")
        arguments = (job.job_id, job_to_json(job), _SUBMISSION_SECONDS, _MAX_NEWS)
        with translated_redis_errors():
            text = await self._redis.eval(_SUBMIT, len(keys), *keys, *arguments)
        return job_from_json(text)

    async def put(self, job: IngestJob) -> None:
        """See `JobStore.put`."""
        finished_at = repr(job.updated_at) if job.state.is_terminal else ""
        keys = (_JOBS, _FINISHED, _OPEN, _CANCELLING, _NEWS, _OUTCOMES, _DURATIONS)
        kept = (self._max_finished_jobs, _MAX_NEWS)
        seconds = max(0.0, job.updated_at - job.created_at)
        ending = (outcome_of(job), _MAX_OUTCOMES, bucket_of(seconds), f"{seconds:.6f}")
        arguments = (job.job_id, job_to_json(job), finished_at, *kept, *ending)
        with translated_redis_errors():
            await self._redis.eval(_PUT, len(keys), *keys, *arguments)

    async def get(self, job_id: str) -> IngestJob | None:
        """See `JobStore.get`."""
        with translated_redis_errors():
            text = await self._redis.hget(_JOBS, job_id)
        return job_from_json(text) if text else None

    async def all(self) -> list[IngestJob]:
        """See `JobStore.all`."""
        with translated_redis_errors():
            texts = await self._redis.hvals(_JOBS)
        return sorted((job_from_json(text) for text in texts), key=lambda job: job.created_at, reverse=True)

    async def unfinished(self) -> list[IngestJob]:
        """See `JobStore.unfinished`."""
        with translated_redis_errors():
            job_ids = await self._redis.smembers(_OPEN)
            texts = await self._redis.hmget(_JOBS, list(job_ids)) if job_ids else []
        return sorted((job_from_json(text) for text in texts if text), key=lambda job: job.created_at)

    async def claim(self, job_id: str) -> RedisLock | None:
        """See `JobStore.claim`."""
        lock = RedisLock(self._redis, key=f"{_LEASE}{job_id}", lease_seconds=self._lease_seconds)
        return lock if await lock.acquire() else None

    async def is_claimed(self, job_id: str) -> bool:
        """See `JobStore.is_claimed`."""
        with translated_redis_errors():
            return bool(await self._redis.exists(f"{_LEASE}{job_id}"))

    async def request_cancel(self, job_id: str) -> None:
        """See `JobStore.request_cancel`."""
        with translated_redis_errors():
            await self._redis.eval(_REQUEST_CANCEL, 2, _OPEN, _CANCELLING, job_id)

    async def is_cancel_requested(self, job_id: str) -> bool:
        """See `JobStore.is_cancel_requested`."""
        with translated_redis_errors():
            return bool(await self._redis.sismember(_CANCELLING, job_id))

    async def follow(self, job_id: str, *, heartbeat_seconds: float) -> AsyncIterator[IngestJob | None]:
        """See `JobStore.follow`."""
        wait_milliseconds = max(1, round(heartbeat_seconds * 1000))
        # Before the state is read, so that nothing falls between the two.
        position = await self._newest()
        shown = await self.get(job_id)
        if shown is None:
            return
        yield shown
        while not shown.state.is_terminal:
            with translated_redis_errors():
                news = await self._redis.xread({_NEWS: position}, count=500, block=wait_milliseconds)
            rows = news[0][1] if news else []
            latest: IngestJob | None = None
            for row_id, fields in rows:
                position = row_id
                if fields["id"] == job_id:
                    latest = job_from_json(fields["job"])
            if not rows:
                # Redis may have lost the stream, or the job: silence is the moment to ask.
                latest = await self.get(job_id)
                if latest is None:
                    return
                if latest == shown:
                    yield None
            if latest is not None and latest != shown:
                shown = latest
                yield shown

    async def outcomes(self) -> Mapping[str, int]:
        """See `JobStore.outcomes`."""
        with translated_redis_errors():
            counted = await self._redis.hgetall(_OUTCOMES)
        return {outcome: int(number) for outcome, number in counted.items()}

    async def durations(self) -> JobDurations:
        """See `JobStore.durations`."""
        with translated_redis_errors():
            counted: dict[str, str] = await self._redis.hgetall(_DURATIONS)
        total_seconds = float(counted.pop(_TOTAL, 0.0))
        return JobDurations(
            counts={int(idx): int(number) for idx, number in counted.items()}, total_seconds=total_seconds
        )

    async def _newest(self) -> str:
        with translated_redis_errors():
            rows = await self._redis.xrevrange(_NEWS, count=1)
        return rows[0][0] if rows else "0-0"


def outcome_of(job: IngestJob) -> str:
    """Under what a terminal job is counted."""
    if job.state is IngestState.FAILED and job.error is not None:
        return f"{job.state.value}:{job.error.code}"
    return job.state.value
