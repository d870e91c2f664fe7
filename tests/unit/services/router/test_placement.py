"""Where requests go: the properties that the choice promises, and a simulation against the least loaded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.routing_plan import RocBudget, RoutingPlan
from services.router.placement import PlacementWeights, WorkerView, choose_worker, cost_of, load_of, resident_share
from tests.builders.placement_simulation import simulate

WEIGHTS = PlacementWeights()


def plan_of(*adapter_ids: str) -> RoutingPlan:
    return RoutingPlan(
        budgets=tuple(
            RocBudget(adapter_id=adapter_id, adapter_name=adapter_id, lora_rank=8, num_rocs=4)
            for adapter_id in adapter_ids
        )
    )


def worker(address="w", *, num=0, **fields) -> WorkerView:
    return WorkerView(address=address, **{"num_reported": num, "num_in_flight": num, "max_num_seqs": 8, **fields})


views = st.builds(
    WorkerView,
    address=st.uuids().map(str),
    num_reported=st.integers(0, 64),
    num_in_flight=st.integers(0, 64),
    max_num_seqs=st.integers(1, 32),
    kv_cache_usage=st.floats(0, 1),
    resident_adapter_ids=st.frozensets(st.sampled_from(["a", "b", "c"])),
    prefix_share=st.floats(0, 1),
    age_seconds=st.floats(0, 10),
)


class TestCost:
    def test_a_plan_s_share_counts_by_budget(self):
        assert resident_share(plan_of("a", "b"), frozenset("a")) == 0.5
        assert resident_share(plan_of(), frozenset("a")) == 0

    def test_old_reports_of_others_count_less_and_own_requests_fully(self):
        fresh, old = (worker(num_reported=8, num_in_flight=2, age_seconds=age) for age in (0, 3))
        assert load_of(fresh, WEIGHTS) == 1.0
        assert 2 / 8 < load_of(old, WEIGHTS) < 0.6

    def test_a_full_kv_cache_costs(self):
        roomy, full = worker(kv_cache_usage=0.7), worker(kv_cache_usage=1.0)
        assert cost_of(full, plan_of(), idlest=0, weights=WEIGHTS) > cost_of(
            roomy, plan_of(), idlest=0, weights=WEIGHTS
        )

    @given(st.lists(views, min_size=1, max_size=6))
    def test_a_bonus_never_outweighs_a_difference_of_load_beyond_the_spread(self, workers):
        rng = random.Random(0)
        fresh = [WorkerView(**{**as_fields(view), "age_seconds": 0.0, "kv_cache_usage": 0.0}) for view in workers]
        chosen = choose_worker(fresh, plan_of("a"), weights=WEIGHTS, rng=rng)
        idlest = min(load_of(view, WEIGHTS) for view in fresh)
        assert load_of(chosen, WEIGHTS) <= idlest + WEIGHTS.spread

    @given(st.lists(views, min_size=3, max_size=8), st.integers(0, 99))
    def test_the_choice_is_one_of_them_and_never_the_costliest_alone(self, workers, seed):
        chosen = choose_worker(workers, plan_of("a"), weights=WEIGHTS, rng=random.Random(seed))
        assert chosen in workers
        idlest = min(load_of(view, WEIGHTS) for view in workers)
        costs = sorted(cost_of(view, plan_of("a"), idlest=idlest, weights=WEIGHTS) for view in workers)
        assert cost_of(chosen, plan_of("a"), idlest=idlest, weights=WEIGHTS) <= costs[-2]


class TestChoice:
    def test_residency_decides_between_equals(self):
        holder = worker("holder", resident_adapter_ids=frozenset("a"))
        for seed in range(20):
            others = [worker(str(number), age_seconds=1.0) for number in range(5)]
            assert choose_worker([*others, holder], plan_of("a"), weights=WEIGHTS, rng=random.Random(seed)) is holder

    def test_a_prefix_decides_between_holders(self):
        views = [
            worker("one", resident_adapter_ids=frozenset("a")),
            worker("two", resident_adapter_ids=frozenset("a"), prefix_share=0.8),
        ]
        assert choose_worker(views, plan_of("a"), weights=WEIGHTS, rng=random.Random(0)).address == "two"

    def test_a_hot_adapter_spreads_before_its_worker_is_full(self):
        holder, idle = worker("holder", num=5, resident_adapter_ids=frozenset("a")), worker("idle")
        assert choose_worker([holder, idle], plan_of("a"), weights=WEIGHTS, rng=random.Random(0)).address == "idle"

    def test_stale_figures_do_not_send_everybody_to_the_same_worker(self):
        views = [worker(str(number), num=number, age_seconds=1.0) for number in range(4)]
        chosen = {
            choose_worker(views, plan_of(), weights=WEIGHTS, rng=random.Random(seed)).address for seed in range(60)
        }
        assert chosen == {"0", "1", "2"}


class TestSimulation:
    @pytest.mark.parametrize("seed", range(3))
    def test_more_hits_than_the_least_loaded_and_no_fuller_workers(self, seed):
        least = simulate("least-loaded", seed=seed)
        ours = simulate("placement", seed=seed)
        assert ours.hit_rate > least.hit_rate + 0.15
        assert ours.p99_load <= least.p99_load
        assert ours.busiest_workers_of_hottest >= 2


def as_fields(view: WorkerView) -> dict:
    return {name: getattr(view, name) for name in WorkerView.__dataclass_fields__}
