"""Adversaries do harm where they are chosen, are flagged, and then are not."""

from __future__ import annotations

import random

import pytest
import torch

from hilora_lab.accuracy.accuracy_bench import profile_of
from hilora_lab.accuracy.adversaries import ADVERSARIES, HUGE, Scene, scaled, turned
from hilora_lab.accuracy.pool_flags import NORM_OUTLIER, SAME_TASK, UNCHOSEN, chosen_among, flags_of
from hilora_lab.accuracy.robustness import run_robustness


@pytest.fixture(scope="module")
def scene(bench):
    return Scene(testbed=bench.testbed, adapters=bench.adapters, texts=bench.sample_texts, num_texts=20)


@pytest.fixture(scope="module")
def report(bench):
    return run_robustness(bench)


def flags_with(bench, adversary):
    profile = profile_of("adversary", adversary.adapter, adversary.texts, bench.encoder)
    profiles = {**bench.profiles(), "adversary": profile}
    return profiles, flags_of(profiles, {**bench.adapters, "adversary": adversary.adapter})


class TestAdversaries:
    def test_scaling_is_of_the_update(self, bench):
        adapter = bench.adapters["rotate-letters"]
        path = next(iter(adapter.modules))

        huge, opposite = scaled(adapter, HUGE), turned(adapter)

        assert torch.equal(huge.modules[path].lora_b, HUGE * adapter.modules[path].lora_b)
        assert torch.equal(opposite.modules[path].lora_b, -adapter.modules[path].lora_b)
        assert torch.equal(opposite.modules[path].lora_a, adapter.modules[path].lora_a)

    @pytest.mark.parametrize(
        ("name", "flag"),
        [("copied-samples", "samples_copied"), ("huge-norm", NORM_OUTLIER), ("double-of-the-task", SAME_TASK)],
    )
    def test_each_is_flagged_and_honest_ones_are_not_kept_out(self, bench, scene, name, flag):
        adversary = ADVERSARIES[name](scene, "reverse-digits", random.Random(0))

        profiles, flags = flags_with(bench, adversary)

        if name == "huge-norm":
            # Six adapters are too few for an outlier; the shipped pool of 36 is not.
            assert flags["adversary"] in {(NORM_OUTLIER,), ()}
        else:
            assert flag in flags["adversary"]
        kept = chosen_among(profiles, flags)
        assert set(bench.adapters) <= set(kept)
        assert ("adversary" in kept) == UNCHOSEN.isdisjoint(flags["adversary"])

    def test_its_samples_are_not_what_is_asked(self, bench, scene):
        asked = {line.prompt for line in bench.asked.all_lines}

        for make in ADVERSARIES.values():
            assert asked.isdisjoint(make(scene, "rotate-digits", random.Random(1)).texts)


class TestReport:
    def test_a_copy_harms_without_the_policy_and_not_with_it(self, report):
        found = report["adversaries"]["copied-samples"]

        assert found["flagged"]
        assert found["id"]["lost_without_policy"] > 0.0
        assert found["id"]["lost"] == 0.0
        assert found["id"]["first"] == 0.0

    def test_it_says_who_else_is_flagged(self, report):
        assert report["honest_flagged"] == {}
        assert set(report["adversaries"]) == set(ADVERSARIES)
