"""A registry without storage: the catalogue is a dict, changes reach the watchers at once, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hilora.adapter import adapter_id_of
from hilora.character_grams import GRAM_SCHEME, SampleGrams
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.rpc_server import RpcServer
from services.common.sequence_encoder import SequenceEncoder
from services.common.tls import TlsIdentity

_Event = registry_pb2.CatalogEvent


def catalog_entry(
    name: str,
    texts: Sequence[str],
    *,
    encoder: SequenceEncoder,
    lora_rank: int = 8,
    revision: str = "a" * 64,
) -> registry_pb2.CatalogEntry:
    """An entry as the real registry sends it."""
    grams = SampleGrams.of(texts)
    return registry_pb2.CatalogEntry(
        adapter_id=adapter_id_of(name, revision),
        adapter_name=name,
        revision=revision,
        lora_rank=lora_rank,
        num_modules=4,
        created_at=1_700_000_000.0,
        base_model="tiny-base",
        encoder_id=encoder.encoder_id,
        samples_source="upload",
        num_samples=len(texts),
        sample_embeddings=encoder.encode(texts).astype("<f4").tobytes(),
        embedding_dim=encoder.embedding_dim,
        gram_scheme=GRAM_SCHEME,
        sample_gram_lengths=grams.lengths_M.tolist(),
        sample_grams=grams.ids_N.astype("<u2").tobytes(),
    )


class FakeRegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Snapshot and watch; the rest of the service answers UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.entries: dict[str, registry_pb2.CatalogEntry] = {}
        self.aliases: dict[str, str] = {}
        self.generation = 0
        self.num_snapshots = 0
        self.cut_snapshots = 0
        """That many snapshots from now on lose their last entry."""
        self._watchers: list[asyncio.Queue[_Event | None]] = []

    def upsert(self, entry: registry_pb2.CatalogEntry) -> None:
        self.generation += 1
        entry.catalog_generation = self.generation
        self.entries[entry.adapter_name] = entry
        self._tell(_Event(kind=_Event.KIND_UPSERT, catalog_generation=self.generation, entry=entry))

    def remove(self, name: str) -> None:
        self.generation += 1
        del self.entries[name]
        self._tell(_Event(kind=_Event.KIND_REMOVE, catalog_generation=self.generation, adapter_name=name))

    def set_aliases(self, **aliases: str) -> None:
        self.generation += 1
        self.aliases = aliases
        self._tell(_Event(kind=_Event.KIND_ALIASES, catalog_generation=self.generation, aliases=aliases))

    def replace(self, *entries: registry_pb2.CatalogEntry) -> None:
        """Another catalogue in one step: followers are told to take a new snapshot."""
        self.generation += 1
        self.entries = {entry.adapter_name: entry for entry in entries}
        self.resync()

    def heartbeat(self) -> None:
        self._tell(_Event(kind=_Event.KIND_HEARTBEAT, catalog_generation=self.generation))

    def resync(self) -> None:
        self._tell(_Event(kind=_Event.KIND_RESYNC, catalog_generation=self.generation))

    def end_watches(self) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(None)

    @property
    def num_watchers(self) -> int:
        return len(self._watchers)

    async def GetSnapshot(self, request, context) -> AsyncIterator[registry_pb2.CatalogSnapshotChunk]:
        self.num_snapshots += 1
        entries = list(self.entries.values())
        num_entries = len(entries)
        if self.cut_snapshots:
            self.cut_snapshots -= 1
            entries = entries[:-1]
        generation = self.generation
        # Several chunks, so that following them is exercised.
        for start in range(0, max(1, len(entries)), 2):
            yield registry_pb2.CatalogSnapshotChunk(
                catalog_generation=generation,
                num_entries=num_entries,
                entries=entries[start : start + 2],
                aliases={} if start else self.aliases,
            )

    async def Watch(self, request, context) -> AsyncIterator[_Event]:
        watcher: asyncio.Queue[_Event | None] = asyncio.Queue()
        if request.after_generation != self.generation:
            watcher.put_nowait(_Event(kind=_Event.KIND_RESYNC, catalog_generation=self.generation))
        self._watchers.append(watcher)
        try:
            while (event := await watcher.get()) is not None:
                yield event
        finally:
            self._watchers.remove(watcher)

    def _tell(self, event: _Event) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(event)


class FakeRegistry:
    """A `FakeRegistryService` that listens. `start` after `stop` takes the same port again."""

    def __init__(self, *, identity: TlsIdentity | None = None) -> None:
        self.service = FakeRegistryService()
        self._identity = identity
        self._port = 0
        self._server: RpcServer | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = RpcServer(
            host="127.0.0.1",
            port=self._port,
            register=[lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(self.service, server)],
            service_names=["hilora_rpc.v1.RegistryService"],
            identity=self._identity,
        )
        await self._server.start()
        self._port = int(self._server.address.rpartition(":")[2])

    async def stop(self) -> None:
        if self._server is not None:
            self.service.end_watches()
            await self._server.stop(grace_seconds=0)
            self._server = None
