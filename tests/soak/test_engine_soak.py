"""A short soak; `scripts/soak_engine.py` runs long ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.soak.engine_soak import EngineSoak


@pytest.fixture
def silence() -> Iterator[None]:
    """What pytest keeps of the log would keep the frames, and with them the requests, of every planted fault."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("silence")
def test_nothing_is_lost_stuck_or_left_over() -> None:
    report = EngineSoak(seed=1, seconds=8.0).run()
    assert report.problems == []
    assert report.num_faults > 0
    assert {"stop", "length", "abort", "non_finite_logits", "generation_failed"} <= set(report.ends)
    assert report.counters["num_preemptions"] > 0
