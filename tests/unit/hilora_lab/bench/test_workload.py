from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.adapter import RocBasis
from hilora.errors import UnknownAdapter
from hilora.routing_settings import RoutingSettings
from hilora_lab.bench.model_shape import build_base, find_shape
from hilora_lab.bench.workload import (
    ALL_LINEARS,
    adapter_bytes,
    build_workload,
    features_of,
    make_plan,
    random_adapter,
    random_prompts,
)


@pytest.fixture(scope="module")
def model():
    return build_base(find_shape("tiny")).model


class TestWorkload:
    def test_thirty_two_plans_of_three_candidates_and_ten_components(self, model):
        workload = build_workload(model)

        assert len({plan.digest for plan in workload.plans}) == 32
        assert len(workload.adapters) == 20
        for plan in workload.plans:
            assert len({budget.adapter_id for budget in plan.budgets} & workload.adapters.keys()) == 3
            assert plan.num_rocs == 10

    def test_plans_gate_as_the_routers_defaults_do(self, model):
        default = RoutingSettings()

        for plan in build_workload(model).plans:
            gate = plan.gate
            assert (gate.scope, gate.score, gate.basis) == (default.gate_scope, default.roc_score, default.basis)

    def test_adapters_target_every_linear_layer_of_the_blocks(self, model):
        adapter = next(iter(build_workload(model).adapters.values()))

        assert len(adapter.modules) == 2 * len(ALL_LINEARS)
        assert not any("lm_head" in path or "embed" in path for path in adapter.modules)

    def test_it_is_a_source_of_components(self, model):
        workload = build_workload(model)

        assert workload.fetch("adapter-3", RocBasis.SVD) is workload.adapters["adapter-3"]
        with pytest.raises(UnknownAdapter):
            workload.fetch("adapter-3", RocBasis.TRAINED)

    def test_bytes_are_those_of_the_components(self, model):
        features = features_of(model, ("q_proj", "v_proj"))
        adapter = random_adapter(features, seed=1)

        num_bytes = sum(rocs.a_RD.nbytes + rocs.b_RO.nbytes for rocs in adapter.modules.values())

        assert adapter_bytes(features) == num_bytes


@given(seed=st.integers(0, 2**32 - 1), num_candidates=st.integers(2, 5))
def test_every_candidate_of_a_plan_acts_and_weights_sum_to_one(seed, num_candidates):
    plan = make_plan([f"adapter-{idx}" for idx in range(num_candidates)], np.random.default_rng(seed))

    assert all(1 <= budget.num_rocs <= budget.lora_rank for budget in plan.budgets)
    assert sum(budget.weight for budget in plan.budgets) == pytest.approx(1.0)


def test_prompts_follow_their_seed_and_hold_no_special_token():
    first, same, other = (random_prompts(4, length=9, vocab_size=40, seed=seed) for seed in (1, 1, 2))

    assert first == same != other
    assert {len(prompt) for prompt in first} == {9}
    assert all(3 <= token < 40 for prompt in first for token in prompt)
