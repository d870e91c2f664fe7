from __future__ import annotations

import asyncio
import os
import signal
import stat
from contextlib import suppress

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.standalone.data_folder import DataFolder
from services.standalone.redis_process import build_redis_process, redis_url_of


@pytest.fixture
def folder(tmp_path):
    folder = DataFolder(tmp_path / "data")
    folder.acquire()
    yield folder
    folder.release()


async def ask(folder, *command):
    client = Redis.from_url(redis_url_of(folder), decode_responses=True)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def ask_until_it_answers(folder, *command):
    for _ in range(200):
        with suppress(RedisError):
            return await ask(folder, *command)
        await asyncio.sleep(0.05)
    raise AssertionError("Redis did not come back")


class TestRedisProcess:
    async def test_what_was_written_is_there_after_a_restart(self, folder):
        for command, answer in ((("SET", "k", "v"), True), (("GET", "k"), "v")):
            process = build_redis_process(folder)
            await process.start()
            try:
                assert await ask(folder, *command) == answer
            finally:
                await process.stop(grace_seconds=5)

    async def test_what_was_written_survives_kill_9(self, folder):
        process = build_redis_process(folder)
        await process.start()
        try:
            await ask(folder, "SET", "k", "v")
            killed = process.pid
            os.kill(killed, signal.SIGKILL)

            assert await ask_until_it_answers(folder, "GET", "k") == "v"
            assert process.pid != killed
        finally:
            await process.stop(grace_seconds=5)

    async def test_only_its_owner_reaches_it(self, folder):
        process = build_redis_process(folder)
        await process.start()
        try:
            assert stat.S_IMODE(folder.socket.stat().st_mode) == 0o700
            assert await ask(folder, "CONFIG", "GET", "port") == {"port": "0"}
        finally:
            await process.stop(grace_seconds=5)

    async def test_a_folder_with_blanks_and_percent_signs_works(self, tmp_path):
        folder = DataFolder(tmp_path / "my data 100%")
        folder.acquire()
        process = build_redis_process(folder)
        await process.start()
        try:
            assert await ask(folder, "PING") is True
        finally:
            await process.stop(grace_seconds=5)
            folder.release()
