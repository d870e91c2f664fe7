"""Idempotency keys in Redis, so that every replica of the registry gives the same answer.

    hilora:idempotency:<digest of the key>      `<digest of the body>:<job id>`; the job id is empty while the first
                                                request with the key is being answered

A reservation is a lease that the process which answers renews: when it dies, the key is free a few seconds later, and
the client's next attempt makes the job, or joins the one that was made already. A result is kept for a day.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from hilora.errors import Conflict, RegistryUnavailable
from services.registry.infra.redis_connection import KEY_PREFIX, translated_redis_errors

_PREFIX = f"{KEY_PREFIX}idempotency:"
_KEPT_SECONDS = 24 * 3600
_LEASE_SECONDS = 10.0

_BEGIN = """
local present = redis.call('get', KEYS[1])
if present then return present end
redis.call('set', KEYS[1], ARGV[1] .. ':', 'PX', ARGV[2])
return false
"""

# A key that is a result by now, is another request's, or was given up, is left alone.
_KEEP = """
if redis.call('get', KEYS[1]) ~= ARGV[1] .. ':' then return 0 end
return redis.call('pexpire', KEYS[1], ARGV[2])
"""

# A result is written also where the reservation ran out, unless another request has the key by now.
_FINISH = """
local present = redis.call('get', KEYS[1])
if present and present ~= ARGV[1] .. ':' then return 0 end
redis.call('set', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'EX', ARGV[3])
return 1
"""

# Only a reservation can be given up, never a result.
_ABANDON = """
local present = redis.call('get', KEYS[1])
if present and string.sub(present, -1) == ':' then return redis.call('del', KEYS[1]) end
return 0
"""


class RedisIdempotencyStore:
    """See `IdempotencyStore`.

    Args:
        redis: client; stays the caller's to close.
        lease_seconds: how long the reservation of a dead process keeps its key.
    """

    def __init__(self, redis: Redis, *, lease_seconds: float = _LEASE_SECONDS) -> None:
        self._redis: Any = redis
        self._lease_seconds = lease_seconds
        self._lease_milliseconds = max(1, round(lease_seconds * 1000))

    async def begin(self, key: str, *, body_digest: str) -> str | None:
        """See `IdempotencyStore.begin`."""
        with translated_redis_errors():
            present = await self._redis.eval(_BEGIN, 1, _place(key), body_digest, self._lease_milliseconds)
        if present is None:
            return None
        known_digest, _, job_id = present.partition(":")
        if known_digest != body_digest:
            raise Conflict(
                "This Idempotency-Key came with another body before.",
                code="idempotency_conflict",
                remedy="Take a new key for a new request; a key is remembered for 24 hours.",
                place="Idempotency-Key",
            )
        if not job_id:
            raise Conflict(
                "The first request with this Idempotency-Key is still being answered.",
                code="idempotency_in_progress",
                remedy="Send it again in a moment.",
                place="Idempotency-Key",
            )
        return job_id

    @asynccontextmanager
    async def keeping(self, key: str, *, body_digest: str) -> AsyncGenerator[None]:
        """See `IdempotencyStore.keeping`."""
        renewing = asyncio.create_task(self._renew(_place(key), body_digest), name="idempotency-keeping")
        try:
            yield
        finally:
            renewing.cancel()

    async def _renew(self, place: str, body_digest: str) -> None:
        is_reserved = True
        while is_reserved:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                with translated_redis_errors():
                    is_reserved = bool(await self._redis.eval(_KEEP, 1, place, body_digest, self._lease_milliseconds))
            except RegistryUnavailable:
                continue  # the submission itself needs Redis, and says so

    async def finish(self, key: str, *, body_digest: str, job_id: str) -> None:
        """See `IdempotencyStore.finish`."""
        with translated_redis_errors():
            await self._redis.eval(_FINISH, 1, _place(key), body_digest, job_id, _KEPT_SECONDS)

    async def abandon(self, key: str) -> None:
        """See `IdempotencyStore.abandon`."""
        with translated_redis_errors():
            await self._redis.eval(_ABANDON, 1, _place(key))


def _place(key: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(key.encode()).hexdigest()}"
