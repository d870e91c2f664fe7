"""Records in Redis, so that every router knows what the others made. Implements `PlanStore` and `SessionStore`.

    hilora:plans:<plan id>         a plan, as JSON
    hilora:sessions:<session key>  where a session stands, as JSON; keys are hashes

What is put is held in this process, too. While Redis is away each router goes on with what it holds itself: a session
whose turns meet several routers may then be planned anew, which costs a cache and no answer. A Redis that comes back
empty is filled again with what the routers hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.log import get_logger
from services.router.infra.local_memory import LocalMemory
from services.router.infra.record_json import decode_plan, decode_session, encode_plan, encode_session
from services.router.plan_record import PlanRecord, SessionRecord

_log = get_logger(__name__)

_TIMEOUT_SECONDS = 0.25
_REST_SECONDS = 1.0
"""After a failure, how long Redis is not asked: each request would wait for the time-out."""
_RENEWED_AFTER = 0.25
"""Share of its time after which a record that does not change is written again."""

_R = TypeVar("_R")
_V = TypeVar("_V")


@dataclass(slots=True)
class RedisOutages:
    """When Redis last failed. Shared by its users: who writes seldom learns it from the others."""

    failed_at: float = float("-inf")
    """On the monotonic clock; what was put before may be gone."""


class RedisMemory(Generic[_R]):
    """Remembers records for all routers.

    Args:
        redis: client without decoding; stays the caller's to close.
        prefix: before every key.
        encode: a record as bytes.
        decode: bytes as a record; None for bytes that are none.
        local: what this process holds, and how long records are remembered.
        is_constant: whether a key always means the same record: then what is held here need not be asked for, nor
            written every time.
        outages: what is known of this Redis.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        encode: Callable[[_R], bytes],
        decode: Callable[[bytes], _R | None],
        local: LocalMemory[_R],
        is_constant: bool,
        outages: RedisOutages | None = None,
    ) -> None:
        self._redis: Any = redis
        self._prefix = prefix
        self._encode = encode
        self._decode = decode
        self._local = local
        self._is_constant = is_constant
        self._rests_until = 0.0
        self._outages = outages or RedisOutages()

    async def get(self, key: str, /) -> _R | None:
        """See the port."""
        held = await self._local.get(key)
        if held is not None and self._is_constant:
            return held
        is_told, data = await self._ask(lambda: self._redis.get(self._prefix + key))
        # What Redis does not have although it was put has been lost there; its time is the same here.
        if not is_told or data is None:
            return held
        return self._decode(data)

    async def put(self, key: str, record: _R, /) -> None:
        """See the port."""
        age_seconds = self._local.age_seconds(key)
        is_fresh = age_seconds < _RENEWED_AFTER * self._local.ttl_seconds
        was_put_since = time.monotonic() - age_seconds > self._outages.failed_at
        if self._is_constant and is_fresh and was_put_since:
            return
        milliseconds = max(1, round(1000 * self._local.ttl_seconds))
        is_written, _ = await self._ask(
            lambda: self._redis.set(self._prefix + key, self._encode(record), px=milliseconds)
        )
        await self._local.put(key, record)
        if not is_written:
            self._outages.failed_at = time.monotonic()

    async def _ask(self, call: Callable[[], Awaitable[_V]]) -> tuple[bool, _V | None]:
        """Whether Redis answered, and what."""
        if time.monotonic() < self._rests_until:
            return False, None
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return True, await call()
        except (RedisError, OSError, TimeoutError) as error:
            self._outages.failed_at = time.monotonic()
            self._rests_until = self._outages.failed_at + _REST_SECONDS
            _log.warning("memory_unreachable", prefix=self._prefix, error=str(error))
            return False, None


def shared_plans(
    redis: Redis, local: LocalMemory[PlanRecord], *, outages: RedisOutages | None = None
) -> RedisMemory[PlanRecord]:
    """The plans of all routers. A plan's id is a hash of it: it never means another one."""
    return RedisMemory(
        redis,
        prefix="hilora:plans:",
        encode=encode_plan,
        decode=decode_plan,
        local=local,
        is_constant=True,
        outages=outages,
    )


def shared_sessions(
    redis: Redis, local: LocalMemory[SessionRecord], *, outages: RedisOutages | None = None
) -> RedisMemory[SessionRecord]:
    """The sessions of all routers."""
    return RedisMemory(
        redis,
        prefix="hilora:sessions:",
        encode=encode_session,
        decode=decode_session,
        local=local,
        is_constant=False,
        outages=outages,
    )
