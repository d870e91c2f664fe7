"""Follows the registry's catalogue for ever: a snapshot, then every change, then a snapshot again whenever one is due.

Routers and workers keep their replicas with it. What it yields is enough to stay exact: after a snapshot, each change
leads from the generation before it to its own, without a gap.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import grpc

from hilora.errors import HiloraError, RegistryUnavailable
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.log import get_logger
from services.common.rpc_client import translated_stream

_log = get_logger(__name__)

_BACKOFF_SECONDS = (0.1, 5.0)
_RESYNC_PAUSE_SECONDS = 0.1
_SNAPSHOT_TIMEOUT_SECONDS = 60.0
_ENTRIES_AT_A_TIME = 64

EntryT = TypeVar("EntryT")
"""What the follower makes of an entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSnapshot(Generic[EntryT]):
    """The whole catalogue at one generation; replaces whatever was known."""

    catalog_generation: int
    entries: tuple[EntryT, ...]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """`name` or `name@version` by alias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogUpsert(Generic[EntryT]):
    """An adapter is new, or its name means another version now."""

    catalog_generation: int
    entry: EntryT


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogRemoval:
    """An adapter left."""

    catalog_generation: int
    adapter_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogAliases:
    """These are all aliases from now on."""

    catalog_generation: int
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CatalogLost:
    """The registry does not answer; what is known stays as it was until the next snapshot."""


CatalogNews = CatalogSnapshot[EntryT] | CatalogUpsert[EntryT] | CatalogRemoval | CatalogAliases | CatalogLost


async def follow_catalog(
    channel: grpc.aio.Channel,
    *,
    peer: str,
    without_samples: bool,
    read: Callable[[registry_pb2.CatalogEntry], EntryT],
) -> AsyncGenerator[CatalogNews[EntryT]]:
    """Yield the catalogue's news for as long as the caller listens; close the generator to end it.

    Args:
        channel: to the registry; the caller closes it.
        peer: the registry, for logs.
        without_samples: leave the sample embeddings out.
        read: makes of an entry what is yielded, as soon as it arrives, and must not raise: messages that wait for the
            end of a large snapshot would take its memory twice.
    """
    stub = registry_pb2_grpc.RegistryServiceStub(channel)
    backoff = _BACKOFF_SECONDS[0]
    while True:
        try:
            snapshot = await _take_snapshot(stub, peer=peer, without_samples=without_samples, read=read)
            backoff = _BACKOFF_SECONDS[0]
            generation = snapshot.catalog_generation
            yield snapshot
            # What the caller keeps of it is the caller's: held here, a large catalogue would be in memory twice.
            del snapshot
            async for change in _changes(stub, generation, peer=peer, without_samples=without_samples, read=read):
                yield change
            # A registry that asks for snapshot after snapshot must not get them at full speed.
            await asyncio.sleep(_RESYNC_PAUSE_SECONDS)
            continue
        except HiloraError as error:
            _log.warning("registry_lost", peer=peer, code=error.code, message=error.message)
        except Exception:  # a replica that stopped following in silence would serve an ever older catalogue
            _log.exception("catalog_feed_failed", peer=peer)
        yield CatalogLost()
        # Jitter keeps a fleet from coming back to a restarted registry in step.
        await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)
        backoff = min(2 * backoff, _BACKOFF_SECONDS[1])


async def _take_snapshot(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub,
    *,
    peer: str,
    without_samples: bool,
    read: Callable[[registry_pb2.CatalogEntry], EntryT],
) -> CatalogSnapshot[EntryT]:
    entries: list[EntryT] = []
    aliases: dict[str, str] = {}
    generation: int | None = None
    num_expected = 0
    request = registry_pb2.GetSnapshotRequest(without_samples=without_samples)
    stream = stub.GetSnapshot(request, timeout=_SNAPSHOT_TIMEOUT_SECONDS)
    async for chunk in translated_stream(aiter(stream), peer=peer):
        if generation is not None and chunk.catalog_generation != generation:
            raise RegistryUnavailable(f"The {peer} mixed two generations in one snapshot.")
        generation = chunk.catalog_generation
        num_expected = chunk.num_entries
        for entry in chunk.entries:
            entries.append(read(entry))
            if len(entries) % _ENTRIES_AT_A_TIME == 0:
                # A large snapshot must not keep the requests from the loop.
                await asyncio.sleep(0)
        aliases.update(chunk.aliases)
    if generation is None or len(entries) != num_expected:
        raise RegistryUnavailable(
            f"The snapshot of the {peer} was cut: {len(entries)} of {num_expected} entries arrived.",
            code="snapshot_cut",
        )
    return CatalogSnapshot(catalog_generation=generation, entries=tuple(entries), aliases=aliases)


async def _changes(
    stub: registry_pb2_grpc.RegistryServiceAsyncStub,
    generation: int,
    *,
    peer: str,
    without_samples: bool,
    read: Callable[[registry_pb2.CatalogEntry], EntryT],
) -> AsyncGenerator[CatalogNews[EntryT]]:
    """Changes until a new snapshot is due (return) or the registry is lost (raise)."""
    request = registry_pb2.WatchRequest(after_generation=generation, without_samples=without_samples)
    call = stub.Watch(request)
    try:
        async for event in translated_stream(aiter(call), peer=peer):
            match event.kind:
                case registry_pb2.CatalogEvent.KIND_UPSERT:
                    generation = event.catalog_generation
                    yield CatalogUpsert(catalog_generation=generation, entry=read(event.entry))
                case registry_pb2.CatalogEvent.KIND_REMOVE:
                    generation = event.catalog_generation
                    yield CatalogRemoval(catalog_generation=generation, adapter_name=event.adapter_name)
                case registry_pb2.CatalogEvent.KIND_ALIASES:
                    generation = event.catalog_generation
                    yield CatalogAliases(catalog_generation=generation, aliases=dict(event.aliases))
                case registry_pb2.CatalogEvent.KIND_HEARTBEAT if event.catalog_generation == generation:
                    continue
                case _:
                    # RESYNC; a heartbeat at another generation means that something was missed; a kind from a newer
                    # registry cannot be applied. A snapshot answers all three.
                    _log.info("catalog_resync", peer=peer, catalog_generation=generation)
                    return
    finally:
        call.cancel()
    raise RegistryUnavailable(f"The {peer} ended its watch stream.")
