from __future__ import annotations

import pytest_asyncio

from tests.builders.registry_process import RegistryProcesses


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(tmp_path_factory):
    processes = RegistryProcesses(tmp_path_factory.mktemp("registry"))
    await processes.start()
    yield processes
    await processes.stop()
