"""A replica of the registry's catalogue: snapshot, then every change, for ever."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import grpc

from hilora.adapter import RocBasis
from hilora_rpc.v1 import registry_pb2
from services.common.catalog_feed import CatalogAliases, CatalogRemoval, CatalogSnapshot, CatalogUpsert, follow_catalog
from services.common.log import get_logger
from services.common.tasks import end_tasks

_log = get_logger(__name__)

_MAX_DEPARTED = 1024
"""Adapters whose checksums are kept after they left: requests that were accepted before may still fetch them."""


class CatalogFollower:
    """Implements `CatalogView` over the registry's gRPC service.

    Args:
        channel: to the registry; the caller closes it.
        peer: the registry, for messages.
        on_departure: called with the id of each adapter version that new requests may no longer use.
        on_arrival: called with the name and the id of each adapter version that its bare name means from now on.
        on_superseded: called with the id of each version that can be named from now on, though its bare name means
            another one, or does so no more.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        peer: str,
        on_departure: Callable[[str], None],
        on_arrival: Callable[[str, str], None] = lambda _name, _id: None,
        on_superseded: Callable[[str], None] = lambda _id: None,
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._on_departure = on_departure
        self._on_arrival = on_arrival
        self._on_superseded = on_superseded
        self._catalog_generation = 0
        self._has_snapshot = False
        self._names: dict[str, _ServedName] = {}
        self._checksums: dict[str, Mapping[str, str]] = {}
        self._departed: OrderedDict[str, Mapping[str, str]] = OrderedDict()
        self._has_changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def catalog_generation(self) -> int:
        """See `CatalogView`."""
        return self._catalog_generation

    def has_adapter(self, adapter_id: str) -> bool:
        """See `CatalogView`."""
        return adapter_id in self._checksums

    def id_of(self, adapter_name: str) -> str | None:
        """The version that the bare name means; None if there is none of that name."""
        served = self._names.get(adapter_name)
        return None if served is None else served.current_id

    def checksum_of(self, adapter_id: str, basis: RocBasis) -> str | None:
        """The sha256 of an adapter's components file in hex; None if the adapter was never in the catalogue."""
        checksums = self._checksums.get(adapter_id) or self._departed.get(adapter_id)
        return None if checksums is None else checksums.get(basis.value)

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
            await end_tasks(self._task)
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
        async for news in follow_catalog(self._channel, peer=self._peer, without_samples=True, read=_read):
            match news:
                case CatalogSnapshot():
                    self._replace(news)
                case CatalogUpsert():
                    self._serve(*news.entry)
                case CatalogRemoval():
                    self._serve(news.adapter_name, None)
                case CatalogAliases():
                    pass  # plans carry identities, never aliases
                case _:
                    # The registry is away: what is known stays in use.
                    continue
            async with self._has_changed:
                self._catalog_generation = news.catalog_generation
                self._has_changed.notify_all()

    def _replace(self, snapshot: CatalogSnapshot[tuple[str, _ServedName]]) -> None:
        served = dict(snapshot.entries)
        for adapter_name in self._names.keys() | served.keys():
            self._serve(adapter_name, served.get(adapter_name))
        self._has_snapshot = True
        _log.info("catalog_snapshot", catalog_generation=snapshot.catalog_generation, num_adapters=len(served))

    def _serve(self, adapter_name: str, served: _ServedName | None) -> None:
        """Let a name mean other versions than before, or none."""
        before = self._names.pop(adapter_name, None)
        known = {} if before is None else before.checksums
        wanted = {} if served is None else served.checksums
        self._checksums.update(wanted)
        if served is not None:
            self._names[adapter_name] = served
        for adapter_id in known:
            if adapter_id not in wanted:
                self._depart(adapter_id)
        old_id = None if before is None else before.current_id
        new_id = None if served is None else served.current_id
        for adapter_id in wanted:
            # One that is new here may have been told to leave before.
            if adapter_id != new_id and (adapter_id == old_id or adapter_id not in known):
                self._on_superseded(adapter_id)
        if new_id is not None and new_id != old_id:
            self._on_arrival(adapter_name, new_id)

    def _depart(self, adapter_id: str) -> None:
        self._departed[adapter_id] = self._checksums.pop(adapter_id)
        while len(self._departed) > _MAX_DEPARTED:
            self._departed.popitem(last=False)
        self._on_departure(adapter_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ServedName:
    """The versions of one name that new requests may use."""

    current_id: str
    checksums: Mapping[str, Mapping[str, str]]
    """sha256 of the components file by basis, by adapter id."""

    @classmethod
    def of(cls, entry: registry_pb2.CatalogEntry) -> Self:
        """The versions of a catalogue entry."""
        checksums = {other.adapter_id: dict(other.component_sha256) for other in entry.other_versions}
        return cls(current_id=entry.adapter_id, checksums={**checksums, entry.adapter_id: dict(entry.component_sha256)})


def _read(entry: registry_pb2.CatalogEntry) -> tuple[str, _ServedName]:
    return entry.adapter_name, _ServedName.of(entry)
