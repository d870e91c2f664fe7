"""The published catalogue in Redis: an index, a generation counter and a bounded stream of changes.

    hilora:catalog:generation   the published generation; missing means that Redis lost its data
    hilora:catalog:entries      hash: adapter name -> entry (JSON)
    hilora:catalog:aliases      all aliases (JSON)
    hilora:catalog:changes      stream; the id of a change is `<generation>-0`
    hilora:catalog:lock         the right to publish

A change is one Lua script, so that index, counter and stream always belong together; the script also checks that
the publisher still holds the lock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from hilora.errors import Conflict
from services.registry.catalog_entry import (
    CatalogChange,
    CatalogEntry,
    CatalogHeartbeat,
    CatalogNews,
    CatalogResync,
    CatalogSnapshot,
)
from services.registry.infra.records import ALIASES, CATALOG_ENTRY
from services.registry.infra.redis_connection import KEY_PREFIX, RedisLock, held, translated_redis_errors

_GENERATION = f"{KEY_PREFIX}catalog:generation"
_ENTRIES = f"{KEY_PREFIX}catalog:entries"
_CHANGES = f"{KEY_PREFIX}catalog:changes"
_LOCK = f"{KEY_PREFIX}catalog:lock"
_ALIASES = f"{KEY_PREFIX}catalog:aliases"
_KEYS = (_LOCK, _GENERATION, _ENTRIES, _CHANGES, _ALIASES)
_LOCK_LEASE_SECONDS = 15.0
_LOCK_WAIT_SECONDS = 30.0
# Above any generation: the end of the stream's id space.
_STREAM_END = "+"

# ARGV: token, previous generation, generation, name or '', entry or '', number of changes to keep, aliases or ''
_COMMIT = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('get', KEYS[2]) ~= ARGV[2] then return 0 end
if ARGV[7] ~= '' then
  redis.call('set', KEYS[5], ARGV[7])
elseif ARGV[5] == '' then
  redis.call('hdel', KEYS[3], ARGV[4])
else
  redis.call('hset', KEYS[3], ARGV[4], ARGV[5])
end
redis.call('xadd', KEYS[4], 'MAXLEN', ARGV[6], ARGV[3] .. '-0',
  'previous', ARGV[2], 'name', ARGV[4], 'entry', ARGV[5], 'aliases', ARGV[7])
redis.call('set', KEYS[2], ARGV[3])
return 1
"""

# ARGV: token, generation, aliases, then name and entry in turn
_REPLACE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[3], KEYS[4])
redis.call('set', KEYS[5], ARGV[3])
for i = 4, #ARGV, 2 do
  redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('set', KEYS[2], ARGV[2])
return 1
"""


class RedisCatalogIndex:
    """See `CatalogIndex`.

    Args:
        redis: client; stays the caller's to close.
        max_kept_changes: length of the change stream; a follower further behind takes a new snapshot.
    """

    def __init__(self, redis: Redis, *, max_kept_changes: int = 10_000) -> None:
        self._redis: Any = redis
        self._max_kept_changes = max_kept_changes

    async def read(self) -> CatalogSnapshot | None:
        """See `CatalogIndex.read`."""
        with translated_redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                generation, entries, aliases = await pipe.get(_GENERATION).hgetall(_ENTRIES).get(_ALIASES).execute()
        if generation is None:
            return None
        parsed = {name: CATALOG_ENTRY.validate_json(text) for name, text in sorted(entries.items())}
        return CatalogSnapshot(
            catalog_generation=int(generation),
            entries=parsed,
            aliases=ALIASES.validate_json(aliases) if aliases else {},
        )

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        """See `CatalogIndex.entry`."""
        with translated_redis_errors():
            text = await self._redis.hget(_ENTRIES, adapter_name)
        return CATALOG_ENTRY.validate_json(text) if text else None

    async def generation(self) -> int | None:
        """See `CatalogIndex.generation`."""
        with translated_redis_errors():
            generation = await self._redis.get(_GENERATION)
        return None if generation is None else int(generation)

    @asynccontextmanager
    async def publishing(self) -> AsyncGenerator[_RedisTransaction]:
        """See `CatalogIndex.publishing`."""
        lock = RedisLock(self._redis, key=_LOCK, lease_seconds=_LOCK_LEASE_SECONDS)
        async with held(lock, wait_seconds=_LOCK_WAIT_SECONDS):
            generation = await self.generation()
            yield _RedisTransaction(self, self._redis, lock, generation, self._max_kept_changes)

    async def follow(self, after_generation: int, *, heartbeat_seconds: float) -> AsyncIterator[CatalogNews]:
        """See `CatalogIndex.follow`."""
        position = after_generation
        wait_milliseconds = max(1, round(heartbeat_seconds * 1000))
        while True:
            changes, generation = await self._changes_after(position)
            for change in changes:
                if change.previous_generation != position:
                    yield CatalogResync(catalog_generation=generation or 0)
                    return
                position = change.catalog_generation
                yield change
            if generation != position:
                # Ahead of us, or gone: the numbers we know mean nothing here.
                yield CatalogResync(catalog_generation=generation or 0)
                return
            with translated_redis_errors():
                news = await self._redis.xread({_CHANGES: f"{position}-0"}, count=1, block=wait_milliseconds)
            if not news and await self.generation() == position:
                yield CatalogHeartbeat(catalog_generation=position)

    async def _changes_after(self, generation: int) -> tuple[list[CatalogChange], int | None]:
        with translated_redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                # "(" leaves the id itself out.
                pipe.xrange(_CHANGES, min=f"({generation}-0", max=_STREAM_END)
                pipe.get(_GENERATION)
                rows, published = await pipe.execute()
        changes = [
            CatalogChange(
                catalog_generation=int(row_id.partition("-")[0]),
                previous_generation=int(fields["previous"]),
                adapter_name=fields["name"],
                entry=CATALOG_ENTRY.validate_json(fields["entry"]) if fields["entry"] else None,
                aliases=ALIASES.validate_json(fields["aliases"]) if fields.get("aliases") else None,
            )
            for row_id, fields in rows
        ]
        return changes, None if published is None else int(published)


class _RedisTransaction:
    """See `CatalogTransaction`."""

    def __init__(
        self, index: RedisCatalogIndex, redis: Any, lock: RedisLock, generation: int | None, max_kept_changes: int
    ) -> None:
        self._index = index
        self._redis = redis
        self._lock = lock
        self._generation = generation
        self._max_kept_changes = max_kept_changes

    @property
    def catalog_generation(self) -> int | None:
        return self._generation

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        return await self._index.entry(adapter_name)

    async def is_held(self) -> bool:
        return await self._lock.extend()

    async def commit(self, change: CatalogChange) -> None:
        entry = CATALOG_ENTRY.dump_json(change.entry).decode() if change.entry else ""
        arguments = (
            self._lock.token,
            change.previous_generation,
            change.catalog_generation,
            change.adapter_name,
            entry,
            self._max_kept_changes,
            "" if change.aliases is None else ALIASES.dump_json(dict(change.aliases)),
        )
        await self._run(_COMMIT, arguments, change.catalog_generation)

    async def replace(self, snapshot: CatalogSnapshot) -> None:
        rows = [part for name, entry in snapshot.entries.items() for part in (name, CATALOG_ENTRY.dump_json(entry))]
        aliases = ALIASES.dump_json(dict(snapshot.aliases))
        arguments = (self._lock.token, snapshot.catalog_generation, aliases, *rows)
        await self._run(_REPLACE, arguments, snapshot.catalog_generation)

    async def _run(self, script: str, arguments: tuple[Any, ...], generation: int) -> None:
        with translated_redis_errors():
            is_done = await self._redis.eval(script, len(_KEYS), *_KEYS, *arguments)
        if not is_done:
            raise Conflict(
                "Another process published in between.",
                code="catalog_lock_lost",
                remedy="Try again.",
            )
        self._generation = generation
