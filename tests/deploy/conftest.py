"""Tests of the deployment files. Two folders need programs that `make install` does not bring, and run when asked for:

    make test-deploy       tests/deploy/static       pytest -m deploy
    make test-containers   tests/deploy/containers   pytest -m containers

Elsewhere they are skipped with that reason. Asked for, a missing program is a failure, never a skip.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_TIERS = {"static": ("deploy", "make test-deploy"), "containers": ("containers", "make test-containers")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("-m", default="") or ""
    for item in items:
        folder = Path(__file__).parent
        if folder not in item.path.parents:
            continue
        tier = _TIERS.get(item.path.relative_to(folder).parts[0])
        if tier is None:
            continue
        marker, command = tier
        item.add_marker(marker)
        if marker not in wanted:
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: needs programs of its own; `{command}` runs it"))
