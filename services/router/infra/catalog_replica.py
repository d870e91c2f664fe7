"""The registry's catalogue in this process's memory: snapshot, then every change, for ever.

The request path reads `view()` and never waits for the registry. A registry that is away leaves the last picture in
use; a change is applied to the names at once and to the fitted model as soon as a thread has fitted it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hilora.errors import InvalidInput, RegistryUnavailable
from hilora.sequence_routing import SequenceRouter
from hilora_rpc.v1 import registry_pb2
from services.common.catalog_feed import CatalogAliases, CatalogRemoval, CatalogSnapshot, CatalogUpsert, follow_catalog
from services.common.log import get_logger
from services.common.rpc_client import open_channel
from services.router.catalog import CatalogView
from services.router.infra.catalog_entry import ReplicatedEntry, read_entry

_log = get_logger(__name__)

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
        self._aliases: dict[str, str] = {}
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
        channel = open_channel(self._address)
        try:
            async for news in follow_catalog(channel, peer=f"registry at {self._address}", without_samples=False):
                match news:
                    case CatalogSnapshot():
                        known, self._entries, self._ignored = self._entries, {}, {}
                        self._aliases = dict(news.aliases)
                        for entry in news.entries:
                            self._keep(entry, before=known.get(entry.adapter_name))
                        _log.info(
                            "catalog_snapshot",
                            catalog_generation=news.catalog_generation,
                            num_adapters=len(self._entries),
                        )
                    case CatalogUpsert():
                        self._keep(news.entry, before=self._entries.get(news.entry.adapter_name))
                    case CatalogRemoval():
                        self._entries.pop(news.adapter_name, None)
                        self._ignored.pop(news.adapter_name, None)
                    case CatalogAliases():
                        self._aliases = dict(news.aliases)
                    case _:
                        self._is_following = False
                        continue
                self._is_following = True
                self._advance(news.catalog_generation)
        finally:
            self._is_following = False
            await channel.close()

    def _keep(self, entry: registry_pb2.CatalogEntry, *, before: ReplicatedEntry | None) -> None:
        name = entry.adapter_name
        try:
            kept = read_entry(entry, encoder_id=self._encoder_id, embedding_dim=self._embedding_dim)
            self._ignored.pop(name, None)
            if kept.encoder_id not in {"", self._encoder_id}:
                # The registry went over to another encoder: what its old one said of the same version still holds.
                if before is not None and before.adapter.adapter_id == kept.adapter.adapter_id:
                    kept = replace(kept, profile=before.profile)
                if kept.profile is None:
                    self._ignored[name] = _unchoosable(name, kept.encoder_id, self._encoder_id)
            self._entries[name] = kept
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
            aliases=dict(self._aliases),
            fitted_names=self._fitted_names,
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


def _unchoosable(adapter_name: str, encoder_id: str, own_encoder_id: str) -> str:
    return (
        f"The samples of {adapter_name!r} were embedded by {encoder_id!r}, this router uses {own_encoder_id!r}: it can "
        "be named, but not be chosen. Restart the router with the registry's encoder and instruction."
    )
