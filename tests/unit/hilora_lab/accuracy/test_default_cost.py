"""What the default costs, on a part of the shipped pool and a small pool of made-up tasks."""

from __future__ import annotations

import numpy as np
import pytest

from hilora_cli.bench_cost import cost_table
from hilora_lab.accuracy.default_cost import CostOrder, measure_cost

ORDER = CostOrder(num_adapters=30, num_texts=5, batches=(1, 4), new_tokens=6, num_rounds=2)


class ScatteredEncoder:
    """Sends every text somewhere, always the same way."""

    def encode(self, texts):
        rows_NE = np.stack([np.random.default_rng(sum(text.encode())).normal(size=64) for text in texts])
        return (rows_NE / np.linalg.norm(rows_NE, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def report(small_testbed, told):
    return measure_cost(small_testbed, ScatteredEncoder(), ORDER, on_progress=lambda *done: told.append(done))


def test_every_figure_is_there(report):
    routing = report["routing"]
    assert routing["num_adapters"] == 30
    for key in ("decide_ms", "decide_cpu_ms", "gaussian_ms", "gaussian_cpu_ms"):
        assert 0.0 <= routing[key]["p50"] <= routing[key]["p99"]
    assert set(report["per_token"]) == {"b1", "b4"}
    for batch in report["per_token"].values():
        assert set(batch) == {"id", "ood", "three"}
        for found in batch.values():
            assert found["decode"]["n"] == found["whole"]["n"] == found["cpu"]["n"] == 2
            assert found["decode"]["median"] > 0.0
        assert batch["three"]["adapters"] == 3.0


def test_goals_are_judged_by_what_was_measured(report):
    assert report["is_met"]["decide_ms"] == (report["routing"]["decide_ms"]["p50"] <= 1.0)
    worst = max(found["decode"]["median"] for batch in report["per_token"].values() for found in batch.values())
    assert report["is_met"]["per_token"] == (worst <= 1.3)


def test_progress_is_told_to_the_end(report, told):
    assert report
    assert ("batch 4", 2, 2) in told
    assert ("decide", 25, 25) in told


def test_the_table_names_what_was_missed(report):
    judged = {**report, "is_met": {"decide_ms": True, "per_token": False}}

    table = cost_table(judged)

    assert str(table.caption) == "missed: per_token"
    assert "decode b4 three" in list(table.columns[0].cells)
