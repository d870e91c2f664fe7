from __future__ import annotations

import dataclasses
import math

import pytest
from prometheus_client import CollectorRegistry

from hilora.routing_plan import CandidateScore, RocBudget, RoutingDecision, RoutingMode, RoutingPlan
from services.router.entrypoints.decision_metrics import DecisionMetrics, posterior_entropy


def decision(*names, mode=RoutingMode.CALIBRATED):
    budgets = tuple(RocBudget(adapter_id=f"{name}@1", adapter_name=name, lora_rank=8, num_rocs=8) for name in names)
    return RoutingDecision(
        plan=RoutingPlan(budgets=budgets), mode=mode, candidates=(), is_out_of_distribution=not names, reason="-"
    )


class Sight:
    def __init__(self, *, num_named):
        self.registry = CollectorRegistry()
        self.metrics = DecisionMetrics(self.registry, num_named=num_named)

    def observe(self, *names, times=1, **kwargs):
        for _ in range(times):
            self.metrics.observe(decision(*names, **kwargs))

    def of(self, adapter):
        return self.registry.get_sample_value("hilora_router_adapter_decisions_total", {"adapter": adapter})


class TestAdapters:
    def test_the_number_of_labels_is_bounded_and_nothing_is_lost(self):
        sight = Sight(num_named=2)
        for number in range(100):
            sight.observe(f"adapter-{number}", times=20)
        samples = [s for family in sight.registry.collect() for s in family.samples if "adapter" in s.labels]
        values = {s.labels["adapter"]: s.value for s in samples if s.name.endswith("_total")}
        assert values.keys() == {"adapter-0", "adapter-1", "other"}
        assert sum(values.values()) == 2000

    def test_a_rare_adapter_gets_no_label(self):
        sight = Sight(num_named=5)
        sight.observe("rare", times=10)
        assert (sight.of("rare"), sight.of("other")) == (None, 10)
        sight.observe("rare")
        assert (sight.of("rare"), sight.of("other")) == (1, 10)

    def test_named_models_do_not_count(self):
        sight = Sight(num_named=5)
        sight.observe("pinned", times=30, mode=RoutingMode.EXPLICIT)
        assert sight.of("pinned") is None
        assert sight.of("other") is None

    def test_an_adapter_called_other_is_among_the_others(self):
        sight = Sight(num_named=5)
        sight.observe("other", times=50)
        assert sight.of("other") == 50


class TestPlans:
    def test_equal_plans_are_repeated_ones(self):
        sight = Sight(num_named=0)
        sight.observe("a", "b", "a")
        sight.observe("a", times=3)
        assert sight.registry.get_sample_value("hilora_router_plans_repeated_total") == 2

    def test_texts_that_no_adapter_explains_are_counted(self):
        sight = Sight(num_named=0)
        sight.observe(times=4)
        sight.observe("a")
        assert sight.registry.get_sample_value("hilora_router_out_of_distribution_total") == 4


def scored(*posteriors):
    return tuple(
        CandidateScore(
            adapter_id=f"{idx}@1",
            adapter_name=str(idx),
            log_likelihood=0.0,
            log_likelihood_ratio=0.0,
            posterior=posterior,
            num_rocs=0,
            weight=0.0,
        )
        for idx, posterior in enumerate(posteriors)
    )


class TestEntropy:
    def test_certainty_has_none(self):
        assert posterior_entropy(scored(1.0, 0.0)) == 0.0

    def test_equal_adapters_have_the_most(self):
        assert posterior_entropy(scored(*[0.25] * 4)) == pytest.approx(math.log(4))

    def test_what_is_not_reported_counts_as_one_adapter(self):
        assert posterior_entropy(scored(0.5, 0.25)) == pytest.approx(posterior_entropy(scored(0.5, 0.25, 0.25)))

    @pytest.mark.parametrize(("mode", "number"), [(RoutingMode.CALIBRATED, 1), (RoutingMode.EXPLICIT, 0)])
    def test_only_choices_of_ours_are_observed(self, mode, number):
        sight = Sight(num_named=0)
        chosen = decision("a", mode=mode)
        sight.metrics.observe(dataclasses.replace(chosen, candidates=scored(0.5, 0.5)))
        assert sight.registry.get_sample_value("hilora_router_posterior_entropy_nats_count") == number
        entropy = sight.registry.get_sample_value("hilora_router_posterior_entropy_nats_sum")
        assert entropy == pytest.approx(number * math.log(2))
