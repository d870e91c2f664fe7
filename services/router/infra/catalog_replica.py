"""The registry's catalogue in this process's memory: snapshot, then every change, for ever.

The request path reads `view()` and never waits for the registry. A registry that is away leaves the last picture in
use; a change is applied to the names at once and to the fitted model as soon as `PoolFitter` has taken it in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace

import grpc

from hilora.errors import InvalidInput, RegistryUnavailable
from hilora.gaussian_index import DenseGaussianIndex, IndexBuilder
from hilora.sample_review import SampleReview
from hilora.sequence_routing import SequenceRouter
from hilora_rpc.v1 import registry_pb2
from services.common.catalog_feed import (
    CatalogAliases,
    CatalogNews,
    CatalogRemoval,
    CatalogSnapshot,
    CatalogUpsert,
    follow_catalog,
)
from services.common.log import get_logger
from services.common.rpc_client import open_channel
from services.common.tasks import end_tasks
from services.common.tls import TlsIdentity
from services.router.catalog import CatalogView
from services.router.infra.catalog_contents import Arrival, CatalogContents
from services.router.infra.catalog_entry import read_entry
from services.router.infra.pool_fitter import PoolFitter, is_same_profile
from services.router.infra.sample_doubts import doubtful

_log = get_logger(__name__)

# Adapters often arrive in a row; one fit serves all that came in this time.
_COALESCE_SECONDS = 0.05
# In a long row the fits would follow one another, each for an adapter or two, and requests wait beside them.
_REST = 3.0
"""Pause after a fit while adapters go on arriving, in times of its duration."""
_MAX_REST_SECONDS = 1.0

EncoderIdentity = Callable[[], tuple[str, int]]
"""Gives `(encoder_id, embedding_dim)` of this router's encoder."""


class CatalogReplica:
    """Implements `Catalog` by following the registry's snapshot and watch streams.

    Args:
        registry_address: `host:port` of the registry's gRPC server.
        encoder: identity of this router's encoder, asked for at `start`.
        build_index: makes what is searched of a fitted pool.
        identity: the certificate to show; None speaks without TLS.
    """

    def __init__(
        self,
        registry_address: str,
        *,
        encoder: EncoderIdentity,
        build_index: IndexBuilder = DenseGaussianIndex,
        identity: TlsIdentity | None = None,
    ) -> None:
        self._identity = identity
        self._address = registry_address
        self._encoder = encoder
        self._encoder_id, self._embedding_dim = "", 0
        self._contents = CatalogContents()
        self._generation: int | None = None
        self._aliases: dict[str, str] = {}
        self._view: CatalogView | None = None
        self._fitted_names: frozenset[str] = frozenset()
        self._gone: frozenset[str] = frozenset()
        self._doubts: dict[str, str] = {}
        self._review = SampleReview()
        self._changed = asyncio.Event()
        self._fitter = PoolFitter(build_index=build_index, on_fitted=self._changed.set)
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
        await end_tasks(*self._tasks)
        self._tasks = []
        await self._fitter.stop()
        self._is_following = False

    async def _follow_for_ever(self) -> None:
        channel = open_channel(self._address, identity=self._identity)
        try:
            async for news in self._news(channel):
                match news:
                    case CatalogSnapshot():
                        self._take_over(news)
                        _log.info(
                            "catalog_snapshot",
                            catalog_generation=news.catalog_generation,
                            num_adapters=len(self._contents.entries),
                        )
                    case CatalogUpsert():
                        self._contents.put(news.entry)
                    case CatalogRemoval():
                        self._contents.remove(news.adapter_name)
                    case CatalogAliases():
                        self._aliases = dict(news.aliases)
                    case _:
                        self._is_following = False
                        continue
                self._is_following = True
                self._advance(news.catalog_generation)
                # Until the next news comes, a whole snapshot would stay in memory beside what was kept of it.
                del news
        finally:
            self._is_following = False
            await channel.close()

    def _news(self, channel: grpc.aio.Channel) -> AsyncGenerator[CatalogNews[Arrival]]:
        return follow_catalog(channel, peer=f"registry at {self._address}", without_samples=False, read=self._read)

    def _take_over(self, snapshot: CatalogSnapshot[Arrival]) -> None:
        """Replace everything that is known, in one step."""
        contents = CatalogContents(snapshot.entries)
        contents.moved |= self._contents.profiles.keys()
        self._contents, self._aliases = contents, dict(snapshot.aliases)

    def _read(self, message: registry_pb2.CatalogEntry) -> Arrival:
        name = message.adapter_name
        try:
            entry = read_entry(message, encoder_id=self._encoder_id, embedding_dim=self._embedding_dim)
        except InvalidInput as error:
            _log.warning("catalog_entry_ignored", adapter=name, code=error.code, message=error.message)
            return Arrival(adapter_name=name, entry=None, ignored=str(error))
        before = self._contents.entries.get(name)
        is_other_encoder = entry.encoder_id not in {"", self._encoder_id}
        is_known = before is not None and before.adapter.adapter_id == entry.adapter.adapter_id
        # The registry went over to another encoder: what its old one said of the same version still holds. And equal
        # samples are kept as the object that the fit has, or a second snapshot would hold them all twice.
        if before is not None and is_known and (is_other_encoder or is_same_profile(entry.profile, before.profile)):
            entry = replace(entry, profile=before.profile)
        is_lost = is_other_encoder and entry.profile is None
        ignored = _unchoosable(name, entry.encoder_id, self._encoder_id) if is_lost else None
        return Arrival(adapter_name=name, entry=entry, ignored=ignored)

    def _advance(self, generation: int) -> None:
        """Show new names and hide gone ones at once, and ask for a fit."""
        self._generation = generation
        if self._view is not None:
            self._publish(self._view.router, router_generation=self._view.router_generation)
        self._changed.set()

    def _publish(self, router: SequenceRouter, *, router_generation: int) -> None:
        assert self._generation is not None, "there is something to publish after the first snapshot"
        contents = self._contents
        self._view = CatalogView(
            adapters=contents.adapters.copy(),
            catalog_generation=self._generation,
            router=router,
            router_generation=router_generation,
            gone=self._gone_names(),
            ignored={**self._doubts, **contents.ignored},
            aliases=dict(self._aliases),
            fitted_names=self._fitted_names,
            rules=contents.rules,
        )

    def _gone_names(self) -> frozenset[str]:
        """Names of the fit that may not be chosen any more; the same object as before if these are the same."""
        moved = self._contents.moved
        if moved:
            placed = self._contents.profiles
            lost = {name for name in moved & self._fitted_names if name not in placed or name in self._doubts}
            if lost != moved & self._gone:
                self._gone = (self._gone - moved) | lost
            moved.clear()
        return self._gone

    async def _fit_for_ever(self) -> None:
        rests_until = 0.0
        while True:
            await self._changed.wait()
            if self._view is not None:
                await asyncio.sleep(max(_COALESCE_SECONDS, rests_until - time.monotonic()))
            self._changed.clear()
            started = time.monotonic()
            assert self._generation is not None, "a change follows a snapshot"
            generation = self._generation
            profiles = self._contents.profiles.copy()
            doubts = await asyncio.to_thread(doubtful, list(self._contents.entries.values()), self._review)
            for name in doubts.keys() & profiles.keys():
                del profiles[name]
            self._contents.moved |= self._doubts.keys() ^ doubts.keys()
            self._doubts = doubts
            try:
                router = await self._fitter.current(list(profiles.values()), catalog_generation=generation)
            except Exception:  # numerics of a strange pool must not end the following: the last fit stays in use
                _log.exception("catalog_fit_failed", catalog_generation=generation, num_adapters=len(profiles))
                continue
            fitted_names, other_names = await asyncio.to_thread(_compared_names, router, self._fitted_names)
            self._contents.moved |= other_names
            self._fitted_names = fitted_names
            self._publish(router, router_generation=generation)
            async with self._fitted:
                self._fitted.notify_all()
            ended = time.monotonic()
            rests_until = ended + min(_REST * (ended - started), _MAX_REST_SECONDS)


def _compared_names(router: SequenceRouter, before: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of a fit, and those that only it or only the one before knows."""
    return router.adapter_names, router.adapter_names ^ before


def _unchoosable(adapter_name: str, encoder_id: str, own_encoder_id: str) -> str:
    return (
        f"The samples of {adapter_name!r} were embedded by {encoder_id!r}, this router uses {own_encoder_id!r}: it can "
        "be named, but not be chosen. Restart the router with the registry's encoder and instruction."
    )
