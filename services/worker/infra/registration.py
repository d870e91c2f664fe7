"""This worker's entry in Redis, by which routers find it."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.log import get_logger
from services.common.tasks import end_tasks
from services.common.worker_entries import ENTRY_SECONDS, HEARTBEAT_SECONDS, KEY_PREFIX, encode_entry

_log = get_logger(__name__)

_TIMEOUT_SECONDS = 2.0


class RedisRegistration:
    """Writes the entry again and again while the worker takes requests, and removes it before the worker drains.

    Redis may be away: the worker serves those who know it already, and is found again when Redis is back.

    Args:
        url: of the Redis that the routers read.
        worker_id: unique for each start of a process.
        address: `host:port` where routers reach this worker.
    """

    def __init__(self, url: str, *, worker_id: str, address: str) -> None:
        self._client = Redis.from_url(url, socket_connect_timeout=_TIMEOUT_SECONDS, socket_timeout=_TIMEOUT_SECONDS)
        self._key = f"{KEY_PREFIX}{worker_id}"
        self._entry = encode_entry(worker_id=worker_id, address=address)
        self._heartbeat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write; never waits for Redis."""
        self._heartbeat = asyncio.create_task(self._beat(), name="worker-registration")

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (there is nothing to wait for)
        """Remove the entry; without Redis it runs out by itself."""
        if self._heartbeat is not None:
            await end_tasks(self._heartbeat)
            self._heartbeat = None
        try:
            await self._client.delete(self._key)
        except (RedisError, OSError) as error:
            _log.warning("worker_entry_left", key=self._key, error=str(error), seconds=ENTRY_SECONDS)
        await self._client.aclose()

    async def _beat(self) -> None:
        was_written = False
        while True:
            try:
                await self._client.set(self._key, self._entry, ex=ENTRY_SECONDS)
            except (RedisError, OSError) as error:
                _log.warning("worker_not_registered", error=str(error))
                was_written = False
            else:
                if not was_written:
                    _log.info("worker_registered", key=self._key)
                was_written = True
            await asyncio.sleep(HEARTBEAT_SECONDS)
