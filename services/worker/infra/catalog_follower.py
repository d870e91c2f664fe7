"""A replica of the registry's catalogue: snapshot, then every change, for ever."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable

import grpc

from hilora.adapter import RocBasis
from hilora.errors import HiloraError, RegistryUnavailable
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.log import get_logger
from services.common.rpc_client import translated_errors, translated_stream

_log = get_logger(__name__)

_FIRST_DELAY_SECONDS = 0.2
_MAX_DELAY_SECONDS = 5.0
_SNAPSHOT_TIMEOUT_SECONDS = 60.0
_MAX_DEPARTED = 1024
"""Adapters whose checksums are kept after they left: requests that were accepted before may still fetch them."""


class CatalogFollower:
    """Implements `CatalogView` over the registry's gRPC service.

    Args:
        channel: to the registry; the caller closes it.
        peer: the registry, for messages.
        on_departure: called with the id of each adapter version that new requests may no longer use.
    """

    def __init__(self, *, channel: grpc.aio.Channel, peer: str, on_departure: Callable[[str], None]) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._peer = peer
        self._on_departure = on_departure
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
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                if not self._has_snapshot:
                    await self._take_snapshot()
                call = self._watch()
                try:
                    async for event in translated_stream(aiter(call), peer=self._peer):
                        delay = _FIRST_DELAY_SECONDS
                        if event.kind == registry_pb2.CatalogEvent.KIND_RESYNC:
                            await self._take_snapshot()
                            break
                        await self._apply(event)
                finally:
                    call.cancel()
            except HiloraError as error:
                _log.warning("registry_lost", peer=self._peer, code=error.code, message=error.message)
            except Exception:  # a malformed answer: the replica keeps its last state, and the next attempt may do
                _log.exception("catalog_follower_failed", peer=self._peer)
            # Jitter: many workers must not come back to a restarted registry in one moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 no secret
            delay = min(2 * delay, _MAX_DELAY_SECONDS)

    def _watch(self) -> grpc.aio.UnaryStreamCall[registry_pb2.WatchRequest, registry_pb2.CatalogEvent]:
        request = registry_pb2.WatchRequest(after_generation=self._catalog_generation, without_samples=True)
        return self._stub.Watch(request)

    async def _take_snapshot(self) -> None:
        entries: dict[str, registry_pb2.CatalogEntry] = {}
        catalog_generation = num_expected = num_chunks = 0
        request = registry_pb2.GetSnapshotRequest(without_samples=True)
        with translated_errors(self._peer):
            async for chunk in self._stub.GetSnapshot(request, timeout=_SNAPSHOT_TIMEOUT_SECONDS):
                num_chunks += 1
                catalog_generation, num_expected = chunk.catalog_generation, chunk.num_entries
                entries.update((entry.adapter_id, entry) for entry in chunk.entries)
        if num_chunks == 0 or len(entries) != num_expected:
            raise RegistryUnavailable(f"{self._peer} sent {len(entries)} of {num_expected} catalogue entries.")
        for adapter_id in [known for known in self._entries if known not in entries]:
            self._depart(adapter_id)
        self._entries = entries
        self._ids_by_name = {entry.adapter_name: entry.adapter_id for entry in entries.values()}
        self._has_snapshot = True
        _log.info("catalog_snapshot", catalog_generation=catalog_generation, num_adapters=len(entries))
        await self._reach(catalog_generation)

    async def _apply(self, event: registry_pb2.CatalogEvent) -> None:
        if event.kind == registry_pb2.CatalogEvent.KIND_UPSERT:
            entry = event.entry
            previous = self._ids_by_name.get(entry.adapter_name)
            if previous is not None and previous != entry.adapter_id:
                self._depart(previous)
            self._entries[entry.adapter_id] = entry
            self._ids_by_name[entry.adapter_name] = entry.adapter_id
        elif event.kind == registry_pb2.CatalogEvent.KIND_REMOVE:
            previous = self._ids_by_name.pop(event.adapter_name, None)
            if previous is not None:
                self._depart(previous)
        await self._reach(event.catalog_generation)

    def _depart(self, adapter_id: str) -> None:
        entry = self._entries.pop(adapter_id, None)
        if entry is None:
            return
        self._departed[adapter_id] = entry
        while len(self._departed) > _MAX_DEPARTED:
            self._departed.popitem(last=False)
        self._on_departure(adapter_id)

    async def _reach(self, catalog_generation: int) -> None:
        async with self._has_changed:
            self._catalog_generation = catalog_generation
            self._has_changed.notify_all()
