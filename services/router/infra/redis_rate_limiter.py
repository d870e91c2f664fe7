"""Limits counted in Redis, so that they hold over all routers together.

Check and count are one script: no two routers can both take the last place. Times are Redis's own, so that routers
whose clocks differ agree. While Redis is away each router counts for itself: a caller may then get as much from each of
them, which is better than nothing from any.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.log import get_logger
from services.router.infra.local_rate_limiter import LocalRateLimiter
from services.router.limits import DAY_SLOTS, MINUTE_SLOTS, SECONDS_PER_DAY_SLOT, Ask, Grant, Standing, refusal

_log = get_logger(__name__)

_PREFIX = "hilora:limits:"
_TIMEOUT_SECONDS = 0.25
_REST_SECONDS = 1.0
"""After a failure, how long Redis is not asked: each request would wait for the time-out."""

_ADMIT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local tokens = tonumber(ARGV[5])

local function window(key, slot_seconds, num_slots)
    local slot = math.floor(now / slot_seconds)
    local all, kept, gone, sum = redis.call('HGETALL', key), {}, {}, 0
    for place = 1, #all, 2 do
        local at, count = tonumber(all[place]), tonumber(all[place + 1])
        if at < slot - num_slots then
            gone[#gone + 1] = all[place]
        else
            kept[#kept + 1] = {at, count}
            sum = sum + count
        end
    end
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    return sum, slot, kept
end

local function wait(kept, sum, wanted, limit, slot_seconds, num_slots)
    table.sort(kept, function(one, other) return one[1] < other[1] end)
    for _, pair in ipairs(kept) do
        sum = sum - pair[2]
        if sum + wanted <= limit then return (pair[1] + num_slots + 1) * slot_seconds - now end
    end
    return slot_seconds
end

redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
local most = tonumber(ARGV[4])
if most > 0 and redis.call('ZCARD', KEYS[4]) >= most then return {0, 'max_concurrent', '1', 0, 0, '0'} end

local windows = {
    {'requests_per_minute', KEYS[1], tonumber(ARGV[1]), 1, 1, tonumber(ARGV[8])},
    {'tokens_per_minute', KEYS[2], tonumber(ARGV[2]), tokens, 1, tonumber(ARGV[8])},
    {'tokens_per_day', KEYS[3], tonumber(ARGV[3]), tokens, tonumber(ARGV[10]), tonumber(ARGV[9])},
}
local used, slots = {}, {}
for place, it in ipairs(windows) do
    local limit = it[3]
    if limit > 0 then
        local sum, slot, kept = window(it[2], it[5], it[6])
        local wanted = math.min(it[4], limit)
        if sum + wanted > limit then
            return {0, it[1], tostring(wait(kept, sum, wanted, limit, it[5], it[6])), 0, 0, '0'}
        end
        used[place], slots[place] = sum, slot
    end
end
local left = {-1, -1, -1}
for place, it in ipairs(windows) do
    if slots[place] then
        redis.call('HINCRBY', it[2], slots[place], it[4])
        redis.call('EXPIRE', it[2], math.ceil(it[5] * (it[6] + 2)))
        left[place] = math.max(0, it[3] - used[place] - it[4])
    end
end
if most > 0 then
    redis.call('ZADD', KEYS[4], now + tonumber(ARGV[7]), ARGV[6])
    redis.call('EXPIRE', KEYS[4], math.ceil(tonumber(ARGV[7])) + 60)
end
return {1, '', '0', left[1], left[2], tostring(now)}
"""

_SETTLE = """
local delta, admitted = tonumber(ARGV[1]), tonumber(ARGV[2])
if delta ~= 0 then
    for place = 1, 2 do
        if redis.call('EXISTS', KEYS[place]) == 1 then
            redis.call('HINCRBY', KEYS[place], math.floor(admitted / tonumber(ARGV[2 + place])), delta)
        end
    end
end
redis.call('ZREM', KEYS[3], ARGV[5])
return 1
"""


class RedisRateLimiter:
    """Implements `RateLimiter` for all routers of one Redis.

    Args:
        redis: a client of its own: calls that take longer than a quarter of a second count as failed.
        local: counts while Redis is away.
    """

    def __init__(self, redis: Redis, *, local: LocalRateLimiter) -> None:
        self._redis: Any = redis
        self._local = local
        self._admit: Any = redis.register_script(_ADMIT)
        self._settle: Any = redis.register_script(_SETTLE)
        self._asks_again_at = 0.0

    @property
    def is_shared(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return time.monotonic() >= self._asks_again_at

    async def admit(self, ask: Ask) -> Grant:
        """See `RateLimiter.admit`."""
        if not self.is_shared:
            return await self._local.admit(ask)
        lease_id = uuid.uuid4().hex
        limits = ask.limits
        arguments = [
            limits.requests_per_minute or 0,
            limits.tokens_per_minute or 0,
            limits.tokens_per_day or 0,
            limits.max_concurrent or 0,
            ask.num_tokens,
            lease_id,
            ask.lease_seconds,
            MINUTE_SLOTS,
            DAY_SLOTS,
            SECONDS_PER_DAY_SLOT,
        ]
        try:
            answer = await self._ask(self._admit(keys=_keys(ask.caller), args=arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self._rest(error)
            return await self._local.admit(ask)
        is_admitted, what, seconds, requests_left, tokens_left, now = answer
        if not is_admitted:
            name = what.decode()
            raise refusal(name, getattr(limits, name), retry_after_seconds=float(seconds))
        standing = Standing(
            remaining_requests=None if requests_left < 0 else requests_left,
            remaining_tokens=None if tokens_left < 0 else tokens_left,
        )
        return Grant(ask=ask, lease_id=lease_id, admitted_at=float(now), standing=standing)

    async def settle(self, grant: Grant, *, num_tokens: int) -> None:
        """See `RateLimiter.settle`. A grant of the time when Redis was away is unknown there, and costs nothing."""
        await self._local.settle(grant, num_tokens=num_tokens)
        if not self.is_shared:
            return
        _, minute, day, leases = _keys(grant.ask.caller)
        arguments = [num_tokens - grant.ask.num_tokens, grant.admitted_at, 1, SECONDS_PER_DAY_SLOT, grant.lease_id]
        try:
            await self._ask(self._settle(keys=[minute, day, leases], args=arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self._rest(error)

    async def _ask(self, call: Awaitable[Any]) -> list[Any]:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return cast("list[Any]", await call)

    def _rest(self, error: Exception) -> None:
        if self.is_shared:
            _log.warning("limits_counted_locally", reason=str(error) or type(error).__name__)
        self._asks_again_at = time.monotonic() + _REST_SECONDS


def _keys(caller: str) -> list[str]:
    """Requests a minute, tokens a minute, tokens a day, running requests. The braces keep them on one shard."""
    return [f"{_PREFIX}{{{caller}}}:{what}" for what in ("requests", "tokens", "day", "running")]
