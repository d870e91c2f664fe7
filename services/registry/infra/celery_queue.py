"""Hands jobs to the ingest process through Celery."""

from __future__ import annotations

import asyncio
from typing import Any

from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError, OperationalError
from redis.asyncio import Redis

from hilora.errors import RegistryUnavailable
from services.registry.infra.redis_connection import translated_redis_errors


class CeleryIngestQueue:
    """See `IngestQueue`.

    Args:
        app: the Celery application both sides share.
        task_name: the ingest task.
        queue_key: where Celery's Redis transport keeps the messages nobody has taken.
        redis: client of the same Redis.
    """

    def __init__(self, *, app: Celery, task_name: str, queue_key: str, redis: Redis) -> None:
        self._app = app
        self._task_name = task_name
        self._queue_key = queue_key
        self._redis: Any = redis

    async def enqueue(self, job_id: str) -> None:
        """See `IngestQueue.enqueue`. Raises RegistryUnavailable (`queue_unavailable`) if the broker is away."""
        try:
            await asyncio.to_thread(self._app.send_task, self._task_name, args=(job_id,), retry=False)
        except (OperationalError, KombuError, CeleryError, OSError) as error:
            raise RegistryUnavailable(
                f"The ingest queue does not answer: {error}",
                code="queue_unavailable",
                remedy="Nothing is lost: an accepted job is queued again as soon as Redis is back.",
            ) from error

    async def waiting(self) -> int:
        """See `IngestQueue.waiting`."""
        with translated_redis_errors():
            return int(await self._redis.llen(self._queue_key))
