"""Start in order, stop in reverse, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Protocol

from services.common.log import get_logger

_log = get_logger(__name__)


class Component(Protocol):
    """A part of a process with a beginning and an end."""

    async def start(self) -> None:
        """Return when the part does its work. Raises if it cannot."""
        ...

    async def stop(self, *, grace_seconds: float) -> None:
        """Return when the part has let go of everything. Safe to call twice, and after a failed `start`."""
        ...


class ComponentGroup:
    """Several components as one: started in order, stopped in reverse, all or nothing."""

    def __init__(self, components: Sequence[Component]) -> None:
        self._components = tuple(components)
        self._started: list[Component] = []

    async def start(self) -> None:
        """Start each component; if one fails, stop those before it and raise."""
        for component in self._components:
            try:
                await component.start()
            except BaseException:
                await self.stop(grace_seconds=0)
                raise
            self._started.append(component)

    async def stop(self, *, grace_seconds: float) -> None:
        """Stop what was started, last first; a component that fails to stop does not keep the others."""
        while self._started:
            component = self._started.pop()
            try:
                await component.stop(grace_seconds=grace_seconds)
            except Exception:
                _log.exception("stop_failed", component=type(component).__name__)


async def run_until_signal(component: Component, *, grace_seconds: float) -> None:
    """Run a component until SIGTERM or SIGINT, then drain it for at most `grace_seconds`.

    A second signal cuts the drain short.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    starting = asyncio.create_task(component.start())
    interrupted = asyncio.create_task(signals.get())
    try:
        await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        await starting
        received = await interrupted
        _log.info("draining", signal=received.name, grace_seconds=grace_seconds)
        stopping = asyncio.create_task(component.stop(grace_seconds=grace_seconds))
        again = asyncio.create_task(signals.get())
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            _log.warning("drain_cut_short")
            stopping.cancel()
        again.cancel()
    finally:
        interrupted.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
