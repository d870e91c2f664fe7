"""The states of ingests in Redis.

    hilora:jobs            hash: job id -> job (JSON)
    hilora:jobs:open       set of the ids of unfinished jobs
    hilora:jobs:finished   sorted set of finished jobs by time; the oldest leave when there are too many
    hilora:jobs:lease:<id> who works on a job

What is still to be done is known from the staging folders as well: losing all of this loses no adapter.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from services.registry.infra.records import job_from_json, job_to_json
from services.registry.infra.redis_connection import KEY_PREFIX, RedisLock, translated_redis_errors
from services.registry.job import IngestJob

_JOBS = f"{KEY_PREFIX}jobs"
_OPEN = f"{KEY_PREFIX}jobs:open"
_FINISHED = f"{KEY_PREFIX}jobs:finished"
_LEASE = f"{KEY_PREFIX}jobs:lease:"

# ARGV: job id, job, time of finishing or '', number of finished jobs to keep
_PUT = """
redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] == '' then
  redis.call('sadd', KEYS[3], ARGV[1])
  redis.call('zrem', KEYS[2], ARGV[1])
  return 0
end
redis.call('srem', KEYS[3], ARGV[1])
redis.call('zadd', KEYS[2], ARGV[3], ARGV[1])
local too_old = redis.call('zrange', KEYS[2], 0, -1 - tonumber(ARGV[4]))
for _, id in ipairs(too_old) do
  redis.call('hdel', KEYS[1], id)
  redis.call('zrem', KEYS[2], id)
end
return #too_old
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

    async def put(self, job: IngestJob) -> None:
        """See `JobStore.put`."""
        finished_at = repr(job.updated_at) if job.state.is_terminal else ""
        arguments = (job.job_id, job_to_json(job), finished_at, self._max_finished_jobs)
        with translated_redis_errors():
            await self._redis.eval(_PUT, 3, _JOBS, _FINISHED, _OPEN, *arguments)

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
