"""One engine over the shipped testbed for all strategies, and the plain model that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders.strategy_bed import PlainModel, StrategyBed


@pytest.fixture(scope="session")
def bed() -> Iterator[StrategyBed]:
    built = StrategyBed()
    yield built
    built.stop()
    built.engine.check_integrity()


@pytest.fixture(scope="session")
def plain() -> PlainModel:
    return PlainModel()
