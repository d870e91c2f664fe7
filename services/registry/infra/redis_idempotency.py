"""Idempotency keys in Redis, so that every replica of the registry gives the same answer.

    hilora:idempotency:<digest of the key>      `<digest of the body>:<job id>`; the job id is empty while the first
                                                request with the key is being answered

A reservation ends by itself when its process dies; a result is kept for a day.
"""

from __future__ import annotations

import hashlib
from typing import Any

from redis.asyncio import Redis

from hilora.errors import Conflict
from services.registry.infra.redis_connection import KEY_PREFIX, translated_redis_errors

_PREFIX = f"{KEY_PREFIX}idempotency:"
_KEPT_SECONDS = 24 * 3600
_RESERVED_SECONDS = 120

_BEGIN = """
local present = redis.call('get', KEYS[1])
if present then return present end
redis.call('set', KEYS[1], ARGV[1] .. ':', 'EX', ARGV[2])
return false
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
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def begin(self, key: str, *, body_digest: str) -> str | None:
        """See `IdempotencyStore.begin`."""
        with translated_redis_errors():
            present = await self._redis.eval(_BEGIN, 1, _place(key), body_digest, _RESERVED_SECONDS)
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
