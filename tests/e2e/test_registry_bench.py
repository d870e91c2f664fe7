"""`hilora bench registry` at toy size: every process it measures really runs, and its page says what it reports."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest

from hilora_lab.bench.registry_bench import GOALS
from hilora_lab.bench.synthetic_pool import EMBEDDING_DIM, NUM_SAMPLES
from tests.builders.patience import patient
from tests.builders.system import HILORA, ROOT

NUM_ADAPTERS = 24
TINY = ["--adapters", str(NUM_ADAPTERS), "--searched", "60", "90", "--quiet-seconds", "1"]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
SECTION = PAGE.partition("## The registry at scale")[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of the first command of the page, in tiny form."""
    command = shlex.split(re.findall(r"^    hilora (bench registry .*)$", SECTION, re.MULTILINE)[0])
    folder = tmp_path_factory.mktemp("bench")
    done = subprocess.run(
        [str(HILORA), *command, *TINY], cwd=folder, capture_output=True, text=True, timeout=patient(280), check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((folder / command[command.index("--out") + 1]).read_text())
    return said


class TestReport:
    def test_it_has_every_figure_it_promises(self, report):
        assert report["num_adapters"] == NUM_ADAPTERS
        figures = {key: report[key] for key in GOALS}
        assert all(isinstance(value, int | float) for value in figures.values())
        for key in set(figures) - {"catalog_bytes_per_adapter"}:
            assert figures[key] > 0.0, key
        assert set(report["is_met"]) <= set(GOALS)

    def test_requests_were_routed_before_and_during_the_update(self, report):
        extras = report["extras"]
        assert extras["num_routes_quiet"] > 0
        assert extras["num_routes_updating"] > 0
        assert extras["top_1"] > 0.5
        assert extras["seconds_until_routable"] > 0.0

    def test_a_snapshot_brings_the_samples_of_every_adapter(self, report):
        assert report["extras"]["snapshot_bytes_per_adapter"] > NUM_SAMPLES * EMBEDDING_DIM * 4

    def test_every_way_to_search_finds_what_scoring_everything_finds(self, report):
        searches = report["extras"]["searches"]
        assert {search["kind"] for search in searches} == {"dense", "exact", "byte", "ivf"}
        assert {search["num_adapters"] for search in searches} == {60, 90}
        assert all(search["top_8_agreement"] == 1.0 for search in searches)


class TestPage:
    def test_it_explains_every_figure_with_its_goal(self):
        explained = dict(re.findall(r"^\| `(\w+)` \| .* \| ?(.*?) ?\|$", SECTION, re.MULTILINE))
        goals = {
            key: f"{sign} {value:,g}" if 0.0 < value < float("inf") else "" for key, (sign, value) in GOALS.items()
        }
        assert explained == goals
