"""Rates on two families of the shipped pool, with an encoder that sees an instruction's words and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilora.topic_watch import TopicRules
from hilora_lab.evaluation.topic_rates import TopicBench
from hilora_lab.testbed.folder import Testbed, read_testbed
from tests.fakes.router_encoder import HashEncoder

FOLDER = Path(__file__).resolve().parents[4] / "examples" / "testbed"
FAMILIES = ("rotate", "reverse", "sort", "ends")


@pytest.fixture(scope="module")
def bench():
    lines = tuple(line for line in read_testbed(FOLDER).lines if line.family in FAMILIES)
    encoder = HashEncoder(embedding_dim=128)
    return TopicBench(Testbed(folder=FOLDER, lines=lines), encoder, split="dev", limit_per_task=4)


def rates(bench, **rules):
    return {rate.kind: rate for rate in bench.rates(TopicRules(**rules))}


class TestRates:
    def test_a_task_s_own_wording_keeps_its_plan_and_ends_another_s(self, bench):
        own = rates(bench)["the task's own wording"]
        assert own.same_task == 0.0
        assert own.other_task > 0.9
        assert own.nearest_is_own == 1.0

    def test_turns_of_no_task_have_no_own_plan(self, bench):
        found = rates(bench)
        for kind in ("follow-ups", "other topics altogether", "tasks without an adapter"):
            assert found[kind].same_task is None
            assert 0.0 <= found[kind].other_task <= 1.0

    def test_stricter_rules_end_fewer_plans(self, bench):
        strict, loose = rates(bench, share=1.0, odds=99.0), rates(bench, share=0.0, odds=1.0)
        for kind, rate in strict.items():
            assert rate.other_task <= loose[kind].other_task
            assert (rate.same_task or 0.0) <= (loose[kind].same_task or 0.0)
        assert sum(rate.other_task for rate in strict.values()) < sum(rate.other_task for rate in loose.values())

    def test_the_same_question_gets_the_same_rates(self, bench):
        assert bench.rates(TopicRules()) == bench.rates(TopicRules())
        assert np.isfinite([rate.other_task for rate in bench.rates(TopicRules())]).all()
