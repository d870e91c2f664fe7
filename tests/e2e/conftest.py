from __future__ import annotations

import pytest

from tests.builders.system import RunningSystem


@pytest.fixture(scope="session")
def system(tmp_path_factory):
    """One running system with the shipped pool, shared by the tests that leave it as they found it."""
    running = RunningSystem(data_dir=tmp_path_factory.mktemp("system") / "data").start()
    yield running
    assert running.terminate() == 0, running.log[-4000:]
