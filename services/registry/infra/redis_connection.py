"""How the registry reaches Redis: one URL for our own client and for Celery's, errors as our own, and locks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError

from hilora.errors import RegistryUnavailable

KEY_PREFIX = "hilora:"
"""Before every key of ours, so that a Redis can be shared."""

_SECONDS_BETWEEN_LOCK_ATTEMPTS = 0.02

# Release and extension happen only while the lock is still ours.
_RELEASE_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_EXTEND_IF_OURS = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
)


def open_redis(url: str) -> Redis:
    """A client that connects lazily. The caller closes it with `aclose`.

    Args:
        url: `redis://`, `rediss://` or `unix:///socket?db=0`.
    """
    # RESP2: replies have the same shape on every server version.
    # The time-out is above every blocking read of ours and ends waiting for a server that vanished.
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_connect_timeout=5,
        socket_timeout=60,
        health_check_interval=30,
    )


def broker_url_of(redis_url: str) -> str:
    """The same server in the form that Celery's transport understands."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    query = parse_qs(parts.query)
    database = query.get("db", ["0"])[0]
    credentials = f"{parts.netloc}" if parts.netloc else ""
    return f"redis+socket://{credentials}{parts.path}?virtual_host={database}"


@contextmanager
def translated_redis_errors() -> Generator[None]:
    """Raise RegistryUnavailable (`redis_unavailable`) where Redis does not answer."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise RegistryUnavailable(
            f"Redis does not answer: {error}",
            code="redis_unavailable",
            remedy="Try again; if it lasts, check that Redis runs at the registry's redis_url.",
        ) from error


class RedisLock:
    """A lock that expires by itself when its holder dies.

    Args:
        redis: client.
        key: key of the lock.
        lease_seconds: after this long without `extend` it is free again.
    """

    def __init__(self, redis: Redis, *, key: str, lease_seconds: float) -> None:
        self._redis: Any = redis
        self.key = key
        self.lease_seconds = lease_seconds
        self.token = uuid.uuid4().hex
        self._lease_milliseconds = max(1, round(lease_seconds * 1000))

    async def acquire(self) -> bool:
        """Take it if it is free."""
        with translated_redis_errors():
            return bool(await self._redis.set(self.key, self.token, nx=True, px=self._lease_milliseconds))

    async def extend(self) -> bool:
        """Keep it for another lease; `False` if it was lost."""
        with translated_redis_errors():
            return bool(await self._redis.eval(_EXTEND_IF_OURS, 1, self.key, self.token, self._lease_milliseconds))

    async def release(self) -> None:
        """Give it back; nothing happens if it was lost."""
        with translated_redis_errors():
            await self._redis.eval(_RELEASE_IF_OURS, 1, self.key, self.token)


@asynccontextmanager
async def held(lock: RedisLock, *, wait_seconds: float) -> AsyncGenerator[RedisLock]:
    """Hold a lock for the time of a block, however long that takes.

    It is extended meanwhile: the lease only says how soon the lock of a dead holder is free again.

    Raises:
        RegistryUnavailable: `catalog_busy`, if others keep it for longer than `wait_seconds`.
    """
    deadline = asyncio.get_running_loop().time() + wait_seconds
    while not await lock.acquire():
        if asyncio.get_running_loop().time() > deadline:
            raise RegistryUnavailable(
                f"Another process has been publishing for more than {wait_seconds:g} s.",
                code="catalog_busy",
                remedy="Try again.",
            )
        await asyncio.sleep(_SECONDS_BETWEEN_LOCK_ATTEMPTS)
    keeping = asyncio.create_task(_keep(lock), name="lock-keeping")
    try:
        yield lock
    finally:
        keeping.cancel()
        await lock.release()


async def _keep(lock: RedisLock) -> None:
    """Extend a lock until it is lost or the task is cancelled."""
    is_ours = True
    while is_ours:
        await asyncio.sleep(lock.lease_seconds / 3)
        try:
            is_ours = await lock.extend()
        except RegistryUnavailable:
            return  # whatever the lock is held for will say so, too
