"""A follower of the catalogue like routers and workers are, that takes down whatever it must never be shown."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import pytest

from services.common import catalog_feed
from services.common.catalog_feed import (
    CatalogAliases,
    CatalogLost,
    CatalogRemoval,
    CatalogSnapshot,
    CatalogUpsert,
    follow_catalog,
)
from tests.builders.store_check import artifact_problems, profile_problems

# Back at once: a test waits for it after every restart.
_OPTIONS = [(f"grpc.{limit}_reconnect_backoff_ms", 50) for limit in ("min", "max", "initial")]
_BACKOFF_SECONDS = (0.05, 0.1)


class CatalogFollower:
    """Follows over gRPC in a thread of its own, through every loss of the registry.

    Args:
        address: `host:port` of the registry's gRPC door.
        data_dir: where each version it is shown must be complete at that very moment.
    """

    def __init__(self, address: str, data_dir: Path) -> None:
        self._address = address
        self._data_dir = data_dir
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._backoff = pytest.MonkeyPatch()
        self.catalog_generation = 0
        self.revisions: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.violations: list[str] = []
        """What it was shown and should not have been."""

    def __enter__(self) -> Self:
        self._backoff.setattr(catalog_feed, "_BACKOFF_SECONDS", _BACKOFF_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._backoff.undo()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._follow())
            except asyncio.CancelledError:
                return

    async def _follow(self) -> None:
        self._task = asyncio.current_task()
        channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        try:
            async for news in follow_catalog(channel, peer="registry", without_samples=True, read=lambda entry: entry):
                match news:
                    case CatalogSnapshot():
                        for entry in news.entries:
                            self._look_at(entry.adapter_name, entry.revision, entry.profile_id)
                        self.revisions = {entry.adapter_name: entry.revision for entry in news.entries}
                        self.aliases = dict(news.aliases)
                    case CatalogUpsert():
                        self._look_at(news.entry.adapter_name, news.entry.revision, news.entry.profile_id)
                        self.revisions[news.entry.adapter_name] = news.entry.revision
                    case CatalogRemoval():
                        self.revisions.pop(news.adapter_name, None)
                    case CatalogAliases():
                        self.aliases = dict(news.aliases)
                    case CatalogLost():
                        continue
                if news.catalog_generation < self.catalog_generation:
                    self.violations.append(f"generation {news.catalog_generation} after {self.catalog_generation}")
                self.catalog_generation = news.catalog_generation
        finally:
            await channel.close()

    def _look_at(self, name: str, revision: str, profile_id: str) -> None:
        problems = artifact_problems(self._data_dir, revision)
        if profile_id:
            problems += profile_problems(self._data_dir, revision, profile_id)
        self.violations += [f"{name} was shown: {problem}" for problem in problems]
