"""A short soak; `scripts/soak_engine.py` runs long ones."""

from __future__ import annotations

from tests.soak.engine_soak import EngineSoak


def test_nothing_is_lost_stuck_or_left_over() -> None:
    report = EngineSoak(seed=1, seconds=8.0).run()
    assert report.problems == []
    assert report.num_faults > 0
    assert {"stop", "length", "abort", "non_finite_logits", "generation_failed"} <= set(report.ends)
    assert report.counters["num_preemptions"] > 0
