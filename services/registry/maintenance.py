"""Keeps the registry's stores tidy and its catalogue in agreement with the disk, for as long as it runs."""

from __future__ import annotations

import asyncio
import random

from hilora.errors import HiloraError
from services.common.log import get_logger
from services.common.tasks import end_tasks
from services.registry.catalog import Catalog
from services.registry.collection import Collector
from services.registry.missing_profiles import MissingProfiles
from services.registry.ports import ProfileStore

_log = get_logger(__name__)


class Maintenance:
    """Reconciles, collects and orders missing profiles from time to time; a component.

    A change of another registry that died in between is brought to its end here, not only at the next start.

    Args:
        catalog: compared with the disk.
        collector: deletes what nobody needs.
        profiles: may hold half-written folders.
        missing_profiles: orders those that could not be made before.
        interval_seconds: time between two rounds.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        collector: Collector,
        profiles: ProfileStore,
        missing_profiles: MissingProfiles,
        interval_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._collector = collector
        self._profiles = profiles
        self._missing_profiles = missing_profiles
        self._interval_seconds = interval_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._work(), name="registry-maintenance")

    async def stop(self, *, grace_seconds: float) -> None:  # noqa: ARG002  (part of every component's signature)
        """Stop; a round in progress is cut, and repeated by the next."""
        if self._task is not None:
            await end_tasks(self._task)
            self._task = None

    async def round(self) -> None:
        """Do everything once. Raises RegistryUnavailable."""
        await self._catalog.reconcile()
        await asyncio.to_thread(self._profiles.sweep)
        await self._collector.collect()
        await self._missing_profiles.look()

    async def _work(self) -> None:
        while True:
            # Replicas started together take turns.
            await asyncio.sleep(self._interval_seconds * random.uniform(0.7, 1.0))  # noqa: S311  (no secret)
            try:
                await self.round()
            except HiloraError as error:
                _log.warning("maintenance_postponed", code=error.code, reason=error.message)
            except Exception:
                # It must outlive every surprise: without it, disks fill up.
                _log.exception("maintenance_failed")
