"""A replica of the registry's catalogue: snapshot, then every change, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable

import grpc

from hilora.adapter import RocBasis
from hilora_rpc.v1 import registry_pb2
from services.common.catalog_feed import CatalogRemoval, CatalogSnapshot, CatalogUpsert, follow_catalog
from services.common.log import get_logger

_log = get_logger(__name__)

_MAX_DEPARTED = 1024
"""Adapters whose checksums are kept after they left: requests that were accepted before may still fetch them."""


class CatalogFollower:
    """Implements `CatalogView` over the registry's gRPC service.

    Args:
        channel: to the registry; the caller closes it.
        peer: the registry, for messages.
        on_departure: called with the id of each adapter version that new requests may no longer use.
        on_arrival: called with the name and the id of each adapter version that new requests may use from now on.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        peer: str,
        on_departure: Callable[[str], None],
        on_arrival: Callable[[str, str], None] = lambda _name, _id: None,
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._on_departure = on_departure
        self._on_arrival = on_arrival
        self._catalog_generation = 0
        self._has_snapshot = False
        self._entries: dict[str, registry_pb2.CatalogEntry] = {}
        self._ids_by_name: dict[str, str] = {}
        self._departed: OrderedDict[str, registry_pb2.CatalogEntry] = OrderedDict()
        self._has_changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def catalog_generation(self) -> int:
        """See `CatalogView`."""
        return self._catalog_generation

    def has_adapter(self, adapter_id: str) -> bool:
        """See `CatalogView`."""
        return adapter_id in self._entries

    def id_of(self, adapter_name: str) -> str | None:
        """The version of an adapter that new requests use; None if there is none of that name."""
        return self._ids_by_name.get(adapter_name)

    def checksum_of(self, adapter_id: str, basis: RocBasis) -> str | None:
        """The sha256 of an adapter's components file in hex; None if the adapter was never in the catalogue."""
        entry = self._entries.get(adapter_id) or self._departed.get(adapter_id)
        return None if entry is None else entry.component_sha256.get(basis.value)

    async def wait_for_generation(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        """See `CatalogView`."""
        return await self._wait_until(lambda: self._catalog_generation >= catalog_generation, timeout_seconds)

    async def wait_for_snapshot(self) -> None:
        """Return once the first snapshot has arrived, however long the registry is away."""
        await self._wait_until(lambda: self._has_snapshot, None)

    async def start(self) -> None:
        """Start following; returns at once."""
        self._task = asyncio.create_task(self._follow(), name="catalog-follower")

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002 part of every component's interface
        """Stop following; the replica stays readable."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _wait_until(self, predicate: Callable[[], bool], timeout_seconds: float | None) -> bool:
        if predicate():
            return True
        try:
            async with asyncio.timeout(timeout_seconds), self._has_changed:
                await self._has_changed.wait_for(predicate)
        except TimeoutError:
            return False
        return True

    async def _follow(self) -> None:
        async for news in follow_catalog(self._channel, peer=self._peer, without_samples=True):
            match news:
                case CatalogSnapshot():
                    self._replace(news)
                case CatalogUpsert():
                    self._put(news.entry)
                case CatalogRemoval():
                    self._depart(self._ids_by_name.pop(news.adapter_name, None))
                case _:
                    # The registry is away: what is known stays in use.
                    continue
            async with self._has_changed:
                self._catalog_generation = news.catalog_generation
                self._has_changed.notify_all()

    def _replace(self, snapshot: CatalogSnapshot) -> None:
        entries = {entry.adapter_id: entry for entry in snapshot.entries}
        for adapter_id in [known for known in self._entries if known not in entries]:
            self._depart(adapter_id)
        arrived = [entry for adapter_id, entry in entries.items() if adapter_id not in self._entries]
        self._entries = entries
        self._ids_by_name = {entry.adapter_name: entry.adapter_id for entry in snapshot.entries}
        self._has_snapshot = True
        for entry in arrived:
            self._on_arrival(entry.adapter_name, entry.adapter_id)
        _log.info("catalog_snapshot", catalog_generation=snapshot.catalog_generation, num_adapters=len(entries))

    def _put(self, entry: registry_pb2.CatalogEntry) -> None:
        previous = self._ids_by_name.get(entry.adapter_name)
        if previous != entry.adapter_id:
            self._depart(previous)
        is_new = entry.adapter_id not in self._entries
        self._entries[entry.adapter_id] = entry
        self._ids_by_name[entry.adapter_name] = entry.adapter_id
        if is_new:
            self._on_arrival(entry.adapter_name, entry.adapter_id)

    def _depart(self, adapter_id: str | None) -> None:
        entry = self._entries.pop(adapter_id, None) if adapter_id is not None else None
        if entry is None:
            return
        self._departed[entry.adapter_id] = entry
        while len(self._departed) > _MAX_DEPARTED:
            self._departed.popitem(last=False)
        self._on_departure(entry.adapter_id)
