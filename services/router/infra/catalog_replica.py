"""The registry's catalogue in this process's memory: snapshot, then every change, for ever.

The request path reads `view()` and never waits for the registry. A registry that is away leaves the last picture in
use; a change is applied to the names at once and to the fitted model as soon as a thread has fitted it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from hilora.errors import HiloraError, InvalidInput, RegistryUnavailable
from hilora.sequence_routing import SequenceRouter
from hilora_rpc.v1 import registry_pb2, registry_pb2_grpc
from services.common.log import get_logger
from services.common.rpc_client import open_channel, translated_stream
from services.router.catalog import CatalogView
from services.router.infra.catalog_entry import ReplicatedEntry, read_entry

_log = get_logger(__name__)

_BACKOFF_SECONDS = (0.1, 5.0)
_RESYNC_PAUSE_SECONDS = 0.1
# Adapters often arrive in a row; one fit serves all that came in this time.
_COALESCE_SECONDS = 0.05

EncoderIdentity = Callable[[], tuple[str, int]]
"""Gives `(encoder_id, embedding_dim)` of this router's encoder."""


class CatalogReplica:
    """Implements `Catalog` by following the registry's snapshot and watch streams.

    Args:
        registry_address: `host:port` of the registry's gRPC server.
        encoder: identity of this router's encoder, asked for at `start`.
    """

    def __init__(self, registry_address: str, *, encoder: EncoderIdentity) -> None:
        self._address = registry_address
        self._encoder = encoder
        self._encoder_id, self._embedding_dim = "", 0
        self._entries: dict[str, ReplicatedEntry] = {}
        self._generation: int | None = None
        self._ignored: dict[str, str] = {}
        self._view: CatalogView | None = None
        self._fitted_names: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._fitted = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_following = False

    @property
    def is_following(self) -> bool:
        """See `Catalog.is_following`."""
        return self._is_following

    def view(self) -> CatalogView:
        """See `Catalog.view`."""
        if self._view is None:
            raise RegistryUnavailable(
                f"No catalogue has arrived from the registry at {self._address} yet.",
                code="catalog_not_loaded",
                remedy="Wait until GET /readyz answers 200; check HILORA_ROUTER_REGISTRY_ADDRESS if it never does.",
            )
        return self._view

    async def wait_beyond(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        """See `Catalog.wait_beyond`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), self._fitted:
                await self._fitted.wait_for(
                    lambda: self._view is not None and self._view.router_generation > catalog_generation
                )
        return self._view is not None and self._view.router_generation > catalog_generation

    async def start(self) -> None:
        """Begin to follow. Returns at once: a router may start before its registry."""
        self._encoder_id, self._embedding_dim = self._encoder()
        self._tasks = [
            asyncio.create_task(self._follow_for_ever(), name="catalog-follow"),
            asyncio.create_task(self._fit_for_ever(), name="catalog-fit"),
        ]

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (nothing here is worth a wait)
        """Stop following; the last view stays readable."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        self._is_following = False

    async def _follow_for_ever(self) -> None:
        backoff = _BACKOFF_SECONDS[0]
        while True:
            channel = open_channel(self._address)
            try:
                stub = registry_pb2_grpc.RegistryServiceStub(channel)
                while True:
                    await self._take_snapshot(stub)
                    backoff = _BACKOFF_SECONDS[0]
                    self._is_following = True
                    await self._watch(stub)
                    # A registry that asks for snapshot after snapshot must not get them at full speed.
                    await asyncio.sleep(_RESYNC_PAUSE_SECONDS)
            except HiloraError as error:
                _log.warning("registry_lost", registry=self._address, code=error.code, message=error.message)
            except Exception:  # a router that stopped following in silence would serve an ever older catalogue
                _log.exception("catalog_follow_failed", registry=self._address)
            finally:
                self._is_following = False
                await channel.close()
            # Jitter keeps a fleet of routers from coming back in step.
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311
            backoff = min(2 * backoff, _BACKOFF_SECONDS[1])

    async def _take_snapshot(self, stub: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        peer = f"registry at {self._address}"
        entries: list[registry_pb2.CatalogEntry] = []
        generation: int | None = None
        num_expected = 0
        stream = stub.GetSnapshot(registry_pb2.GetSnapshotRequest())
        async for chunk in translated_stream(aiter(stream), peer=peer):
            if generation is not None and chunk.catalog_generation != generation:
                raise RegistryUnavailable(f"The {peer} mixed two generations in one snapshot.")
            generation = chunk.catalog_generation
            num_expected = chunk.num_entries
            entries.extend(chunk.entries)
        if generation is None or len(entries) != num_expected:
            raise RegistryUnavailable(
                f"The snapshot of the {peer} was cut: {len(entries)} of {num_expected} entries arrived.",
                code="snapshot_cut",
            )
        self._ignored = {}
        self._entries = {}
        for entry in entries:
            self._keep(entry)
        self._advance(generation)
        _log.info("catalog_snapshot", catalog_generation=generation, num_adapters=len(self._entries))

    async def _watch(self, stub: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        """Apply changes until a new snapshot is due (return) or the registry is lost (raise)."""
        assert self._generation is not None, "watching begins where a snapshot ended"
        peer = f"registry at {self._address}"
        stream = stub.Watch(registry_pb2.WatchRequest(after_generation=self._generation))
        async for event in translated_stream(aiter(stream), peer=peer):
            match event.kind:
                case registry_pb2.CatalogEvent.KIND_UPSERT:
                    self._keep(event.entry)
                    self._advance(event.catalog_generation)
                case registry_pb2.CatalogEvent.KIND_REMOVE:
                    self._entries.pop(event.adapter_name, None)
                    self._ignored.pop(event.adapter_name, None)
                    self._advance(event.catalog_generation)
                case registry_pb2.CatalogEvent.KIND_HEARTBEAT if event.catalog_generation == self._generation:
                    continue
                case _:
                    # RESYNC; a heartbeat at another generation means that something was missed; a kind from a newer
                    # registry cannot be applied. A snapshot answers all three.
                    _log.info("catalog_resync", catalog_generation=self._generation)
                    return
        raise RegistryUnavailable(f"The {peer} ended its watch stream.")

    def _keep(self, entry: registry_pb2.CatalogEntry) -> None:
        name = entry.adapter_name
        try:
            self._entries[name] = read_entry(entry, encoder_id=self._encoder_id, embedding_dim=self._embedding_dim)
            self._ignored.pop(name, None)
        except InvalidInput as error:
            # An older version under this name is superseded: serving it on would hide the fault.
            self._entries.pop(name, None)
            self._ignored[name] = str(error)
            _log.warning("catalog_entry_ignored", adapter=name, code=error.code, message=error.message)

    def _advance(self, generation: int) -> None:
        """Show new names and hide gone ones at once, and ask for a fit."""
        self._generation = generation
        if self._view is not None:
            self._publish(self._view.router, router_generation=self._view.router_generation)
        self._changed.set()

    def _publish(self, router: SequenceRouter, *, router_generation: int) -> None:
        assert self._generation is not None, "there is something to publish after the first snapshot"
        self._view = CatalogView(
            adapters={name: entry.adapter for name, entry in self._entries.items()},
            catalog_generation=self._generation,
            router=router,
            router_generation=router_generation,
            gone=frozenset(name for name in self._fitted_names if name not in self._entries),
            ignored=dict(self._ignored),
        )

    async def _fit_for_ever(self) -> None:
        while True:
            await self._changed.wait()
            if self._view is not None:
                await asyncio.sleep(_COALESCE_SECONDS)
            self._changed.clear()
            assert self._generation is not None, "a change follows a snapshot"
            generation = self._generation
            profiles = [entry.profile for entry in self._entries.values() if entry.profile is not None]
            try:
                router = await asyncio.to_thread(SequenceRouter, profiles, catalog_generation=generation)
            except Exception:  # numerics of a strange pool must not end the following: the last fit stays in use
                _log.exception("catalog_fit_failed", catalog_generation=generation, num_adapters=len(profiles))
                continue
            self._fitted_names = frozenset(profile.adapter_name for profile in profiles)
            self._publish(router, router_generation=generation)
            _log.info("catalog_fitted", catalog_generation=generation, num_adapters=len(profiles))
            async with self._fitted:
                self._fitted.notify_all()
