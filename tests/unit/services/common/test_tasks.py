from __future__ import annotations

import asyncio

import pytest

from services.common import tasks
from services.common.tasks import end_tasks


async def test_tasks_end_together():
    sleeping = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
    await end_tasks(*sleeping)
    assert all(task.cancelled() for task in sleeping)


async def test_no_task_is_no_wait():
    await end_tasks()


async def test_what_has_failed_already_is_not_raised():
    async def fail():
        raise ValueError("no")

    failing = asyncio.create_task(fail())
    await asyncio.wait({failing})
    await end_tasks(failing)
    assert isinstance(failing.exception(), ValueError)


async def test_a_request_that_is_lost_is_made_again(monkeypatch):
    monkeypatch.setattr(tasks, "_SECONDS_BETWEEN_REQUESTS", 0.01)
    num_lost = 0

    async def forgetful():
        nonlocal num_lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if num_lost == 2:
                    raise
                num_lost += 1

    task = asyncio.create_task(forgetful())
    await asyncio.sleep(0)
    await end_tasks(task)
    assert task.cancelled()
    assert num_lost == 2


async def test_who_waits_can_be_cancelled(monkeypatch):
    monkeypatch.setattr(tasks, "_SECONDS_BETWEEN_REQUESTS", 0.01)
    is_released = asyncio.Event()

    async def stubborn():
        while not is_released.is_set():
            try:
                await is_released.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await end_tasks(task)
    is_released.set()
    await asyncio.wait({task})
