"""Offline routing on two families of the shipped pool, with an encoder that sees wording and domain plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilora.errors import InvalidInput
from hilora.routing_settings import RoutingSettings
from hilora_lab.evaluation.ablation import ABLATION_SETTINGS, configurations, run_ablation
from hilora_lab.evaluation.offline import OfflineBench
from hilora_lab.testbed.folder import Testbed, read_testbed
from tests.builders.plain_encoder import FAMILIES, PlainEncoder

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"


@pytest.fixture(scope="module")
def bench():
    lines = tuple(line for line in read_testbed(FOLDER).lines if line.family in FAMILIES)
    return OfflineBench(Testbed(folder=FOLDER, lines=lines), PlainEncoder(lines), split="dev", limit_per_task=4)


class TestScores:
    def test_the_own_adapter_is_found_and_answers(self, bench):
        score = bench.score("id", RoutingSettings())

        assert score.num_prompts == 24
        assert score.own_first == 1.0
        assert score.exact_match >= 0.9

    def test_a_sibling_takes_over_when_it_is_excluded(self, bench):
        score = bench.score("ood", RoutingSettings())

        assert score.own_first == 0.0
        assert score.family_first == 1.0
        assert 0.5 <= score.exact_match <= 1.0

    def test_unseen_tasks_have_no_own_adapter(self, bench):
        score = bench.score("unseen", RoutingSettings())

        assert score.num_prompts == 12
        assert (score.own_first, score.family_first) == (0.0, 0.0)


class TestAblation:
    def test_a_starved_budget_costs_answers_in_the_trained_basis_only(self, bench):
        names = ["top-1, full budget", "top-1, gamma 0.2, svd basis", "top-1, gamma 0.2, trained basis"]
        announced = []

        full, svd, trained = run_ablation(bench, names, lambda row: announced.append(row.name))

        assert announced == names
        assert set(full.scores) == set(ABLATION_SETTINGS)
        assert svd.scores["id"].mean_rocs < full.scores["id"].mean_rocs
        assert svd.scores["id"].exact_match > trained.scores["id"].exact_match

    def test_names_are_checked_before_anything_runs(self, bench):
        with pytest.raises(InvalidInput) as caught:
            run_ablation(bench, ["best of all"])

        assert caught.value.code == "unknown_configuration"
        assert "paper, literally" in str(caught.value)

    def test_every_configuration_is_different(self):
        settings = list(configurations().values())

        assert all(settings.count(one) == 1 for one in settings)
