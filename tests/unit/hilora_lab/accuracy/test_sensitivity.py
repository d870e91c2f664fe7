"""Dimensions of the sensitivity bench, and what they are made of."""

from __future__ import annotations

import numpy as np
import pytest

from hilora.adapter import RocBasis
from hilora_lab.accuracy import sensitivity
from hilora_lab.accuracy.crowd import crowded
from hilora_lab.accuracy.encoders import LexicalEncoder
from hilora_lab.accuracy.sensitivity import SensitivityBench
from hilora_lab.accuracy.sensitivity_plots import draw_sensitivity


@pytest.fixture(scope="module")
def dimensions(bench):
    return SensitivityBench(bench).dimensions


class TestDimensions:
    def test_a_starved_budget_costs_answers_in_the_trained_basis(self, bench, monkeypatch):
        monkeypatch.setattr(sensitivity, "GAMMAS", (0.2, 1.0))
        made = SensitivityBench(bench)

        svd, trained = made.gamma(RocBasis.SVD), made.gamma(RocBasis.TRAINED)

        assert svd[0]["id"]["rocs"] < svd[1]["id"]["rocs"]
        assert svd[0]["id"]["exact_match"] > trained[0]["id"]["exact_match"]

    def test_samples_run_from_one_to_all_there_are(self, dimensions, monkeypatch):
        monkeypatch.setattr(sensitivity, "SAMPLE_COUNTS", (1, 40))

        few, many = dimensions["samples"]()

        assert (few["mean_samples"], many["mean_samples"]) == (1.0, 36.0)
        assert many["id"]["own_first"] >= few["id"]["own_first"]

    def test_unequal_samples_are_told_apart(self, dimensions):
        points = dimensions["unequal_samples"]()

        assert [point["value"] for point in points] == ["every second has 3", "1 to 20 at random", "all have 20"]
        assert points[0]["id"]["few"] is not None
        assert "few" not in points[2]["id"]

    def test_pools_grow_by_strangers(self, dimensions, monkeypatch):
        monkeypatch.setattr(sensitivity, "POOL_SIZES", (4, 60))

        small, large = dimensions["pool_size"]()

        assert (small["n"], large["n"]) == (12, 18)
        assert large["own_first"] >= 0.5
        assert large["own_among_three"] >= large["own_first"]

    def test_pictures_are_drawn_of_numbers_and_of_words(self, dimensions, monkeypatch, tmp_path):
        monkeypatch.setattr(sensitivity, "MASSES", (0.5, 0.9))
        report = {
            "dimensions": {
                "candidate_mass": dimensions["candidate_mass"](),
                "unequal_samples": dimensions["unequal_samples"](),
                "encoder": [{"value": "absent", "left_out": "not installed"}],
            }
        }

        paths = draw_sensitivity(report, tmp_path)

        assert [path.name for path in paths] == [
            "sensitivity-candidate-mass.svg",
            "sensitivity-unequal-samples.svg",
        ]


class TestCrowd:
    def test_a_larger_pool_keeps_everybody_and_a_smaller_one_some(self, bench):
        profiles = bench.profiles()

        larger, smaller = crowded(profiles, size=50, seed=0), crowded(profiles, size=3, seed=0)

        assert len(larger) == 50
        assert all(larger[name] is profile for name, profile in profiles.items())
        assert len(smaller) == 3
        assert set(smaller) < set(profiles)

    def test_strangers_are_unit_vectors_and_repeatable(self, bench):
        first, second = (crowded(bench.profiles(), size=20, seed=7) for _ in range(2))
        stranger = first["stranger-3"].samples_ME

        assert np.allclose(np.linalg.norm(stranger, axis=1), 1.0, atol=1e-6)
        assert np.array_equal(stranger, second["stranger-3"].samples_ME)


class TestLexicalEncoder:
    def test_like_wording_is_near_and_the_same_everywhere(self):
        encoder = LexicalEncoder()
        one, near, far = encoder.encode(["reverse the letters", "reverse the digits", "sum up a column"])

        assert one @ near > one @ far + 0.2
        assert np.array_equal(encoder.encode(["reverse the letters"])[0], one)
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)
