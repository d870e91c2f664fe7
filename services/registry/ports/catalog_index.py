"""Ports of the published catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.registry.catalog_entry import CatalogChange, CatalogEntry, CatalogNews, CatalogSnapshot


class CatalogTransaction(Protocol):
    """The right to publish, held by one process at a time."""

    @property
    def catalog_generation(self) -> int | None:
        """The published generation; `None` if the index is empty, as after a loss of its data."""
        ...

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        """The published entry of a name."""
        ...

    async def is_held(self) -> bool:
        """Whether the right is still ours."""
        ...

    async def commit(self, change: CatalogChange) -> None:
        """Publish one step. Raises Conflict (`catalog_lock_lost`) if the right was lost meanwhile."""
        ...

    async def replace(self, snapshot: CatalogSnapshot) -> None:
        """Publish a whole catalogue; every follower has to take a new snapshot. Raises like `commit`."""
        ...


class CatalogIndex(Protocol):
    """The published catalogue and its changes. Fast, shared by processes, may lose everything."""

    async def read(self) -> CatalogSnapshot | None:
        """Generation and entries of one moment; `None` if the index is empty."""
        ...

    async def entry(self, adapter_name: str) -> CatalogEntry | None:
        """The published entry of a name."""
        ...

    async def generation(self) -> int | None:
        """The published generation; `None` if the index is empty."""
        ...

    def publishing(self) -> AbstractAsyncContextManager[CatalogTransaction]:
        """Wait for the right to publish. Raises RegistryUnavailable (`catalog_busy`) if others keep it too long."""
        ...

    def follow(self, after_generation: int, *, heartbeat_seconds: float) -> AsyncIterator[CatalogNews]:
        """Changes after a generation, in order and without a gap, with heartbeats in between.

        Ends after a `CatalogResync`: from there on only a new snapshot helps.
        """
        ...
