"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

_SECONDS_BETWEEN_REQUESTS = 1.0
"""More than a task needs to let go of what it holds."""


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and return when all have ended, however.

    A request to be cancelled can be lost: up to Python 3.11, `asyncio.wait_for` returns its result instead where both
    come at once (https://github.com/python/cpython/issues/86296), and redis-py sends every command through it. Who asks
    only once then waits for a task that goes on.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_SECONDS_BETWEEN_REQUESTS)
