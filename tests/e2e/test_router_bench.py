"""`hilora bench router` at toy size: every process it measures really runs."""

from __future__ import annotations

import json
import subprocess

import pytest

from hilora_lab.bench.router_bench import GOALS, LEVELS
from tests.builders.patience import patient
from tests.builders.system import HILORA, ROOT

TINY = ["--adapters", "40", "--scored", "100", "--memory-requests", "80", "--seconds", "4", "3", "3"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "router.json"
    command = [str(HILORA), "bench", "router", "--json", "--out", str(out), *TINY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patient(280), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(out.read_text())
    return json.loads(done.stdout)


class TestReport:
    def test_it_has_every_figure_it_promises(self, report):
        for key in ("added_latency_ms_p50", "added_latency_ms_p99"):
            assert tuple(report[key]) == LEVELS
            assert all(value is not None for value in report[key].values())
        assert report["score_10k_ms"] > 0.0
        assert report["requests_per_second_cached"] > 0.0
        assert set(report["is_met"]) == set(GOALS)

    def test_a_peer_that_was_not_asked_for_is_named_as_missing(self, report):
        peer = report["peer_added_latency_ms_p50"]

        assert peer["peer"] is None
        assert "--peer" in peer["reason"]
        assert [peer[level] for level in LEVELS] == [None] * 3
        assert report["is_met"]["peer_ratio"] is None

    def test_nothing_failed_on_the_way(self, report):
        extras = report["extras"]
        for by_target in extras["latencies"].values():
            assert all(said["failures"] == {} for said in by_target.values())
        assert extras["cached"]["failures"] == extras["memory"]["failures"] == {}
        assert extras["memory"]["num_requests"] == 80

    def test_the_backend_keeps_its_speed(self, report):
        speed = report["extras"]["backend_speed"]
        direct = report["extras"]["latencies"]["1"]["direct"]

        assert direct["ttft"]["p50_ms"] >= speed["ttft_seconds"] * 1e3
        assert direct["e2e"]["p50_ms"] >= (speed["ttft_seconds"] + 31 * speed["itl_seconds"]) * 1e3
