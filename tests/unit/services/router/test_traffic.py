"""The share-of-traffic alarm, with clocks that tests move."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hilora.access import AdapterAccess, Requester, TrustTier
from hilora.routing_plan import GateParameters, RocBudget, RoutingDecision, RoutingMode, RoutingPlan
from services.router.traffic import TrafficRules, TrafficWatch
from tests.fakes.router_ports import InMemoryCatalog, catalog_view

_ADDED_AT = 1_700_000_000.9
"""What `catalog_view` says of every adapter."""


def decision(*names, mode=RoutingMode.CALIBRATED):
    budgets = tuple(
        RocBudget(adapter_id=f"{name}@1", adapter_name=name, lora_rank=8, num_rocs=4, weight=1.0) for name in names
    )
    plan = RoutingPlan(budgets=budgets, gate=GateParameters(), catalog_generation=1)
    return RoutingDecision(plan=plan, mode=mode, candidates=(), is_out_of_distribution=False, reason="")


class Case:
    def __init__(self, *, age=3600.0, has_old=True, access=None, **rules):
        self.now = 0.0
        self.raised = []
        view = catalog_view({"new": ["x"], "old": ["y"]}, access=access)
        if has_old:
            adapters = {**view.adapters, "old": replace(view.adapters["old"], created_at=1.0)}
            view = replace(view, adapters=adapters)
        self.catalog = InMemoryCatalog(view)
        self.watch = TrafficWatch(
            catalog=self.catalog,
            rules=TrafficRules(**{"window_seconds": 300.0, "min_decisions": 20, **rules}),
            monotonic=lambda: self.now,
            unix_time=lambda: _ADDED_AT + age + self.now,
            on_alarm=self.raised.append,
        )

    def serve(self, num, *names, seconds=0.0):
        """So many decisions, spread over a time."""
        for _ in range(num):
            self.watch.record(decision(*names))
            self.now += seconds / num

    def share(self, name):
        return {item.adapter_name: item for item in self.watch.report(Requester()).adapters}[name].share


class TestShares:
    def test_they_are_parts_of_all_automatic_decisions(self):
        case = Case()
        case.serve(6, "new")
        case.serve(2, "new", "old")
        case.serve(2)
        case.watch.record(decision("old", mode=RoutingMode.EXPLICIT))

        report = case.watch.report(Requester())

        assert report.num_decisions == 10
        assert [(item.adapter_name, item.share) for item in report.adapters] == [("new", 0.8), ("old", 0.2)]

    def test_what_is_older_than_the_window_counts_no_more(self):
        case = Case()
        case.serve(10, "new")
        case.now = 310.0
        case.serve(10, "old")
        assert case.share("old") == 1.0
        case.now = 10_000.0
        assert case.watch.report(Requester()).num_decisions == 0

    def test_a_tenant_is_told_of_visible_adapters_only(self):
        case = Case(access={"new": AdapterAccess(visible_to=("a",))})
        case.serve(4, "new")
        assert case.watch.report(Requester()).adapters == ()
        assert [item.adapter_name for item in case.watch.report(Requester(tenant="a")).adapters] == ["new"]

    def test_memory_is_bounded_whatever_the_time(self):
        case = Case()
        case.serve(5000, "new", seconds=50_000.0)
        assert len(case.watch._buckets) <= 60


class TestAlarm:
    def test_a_recent_adapter_that_takes_too_much_alarms_once(self):
        case = Case(max_share=0.5)
        case.serve(30, "old", seconds=30)
        assert case.watch.alarms == {}
        case.serve(60, "new", seconds=30)

        assert case.watch.alarms == {"new": "share"}
        assert [(item.adapter_name, item.alarm) for item in case.raised] == [("new", "share")]

    def test_it_ends_when_the_share_falls(self):
        case = Case()
        case.serve(40, "new")
        assert case.watch.alarms
        case.serve(60, "old")
        assert case.watch.alarms == {}
        case.serve(60, "new")
        assert case.watch.alarms
        assert len(case.raised) == 2

    def test_an_old_adapter_in_good_standing_may_take_everything(self):
        case = Case(age=200_000.0)
        case.serve(100, "new")
        assert case.watch.alarms == {}

    @pytest.mark.parametrize(
        ("tier", "alarms"),
        [(TrustTier.UNTRUSTED, {"new": "share"}), (TrustTier.COMMUNITY, {}), (TrustTier.TRUSTED, {})],
    )
    def test_a_low_tier_is_watched_at_any_age(self, tier, alarms):
        case = Case(age=200_000.0, access={"new": AdapterAccess(trust_tier=tier)})
        case.serve(100, "new")
        assert case.watch.alarms == alarms

    def test_sudden_growth_alarms_below_the_fixed_share(self):
        case = Case(max_share=0.9, max_growth=3.0)
        for _ in range(10):
            case.serve(19, "old", seconds=28)
            case.serve(1, "new", seconds=2)
        assert case.watch.alarms == {}
        for _ in range(10):
            case.serve(8, "old", seconds=20)
            case.serve(4, "new", seconds=9)

        assert case.watch.alarms == {"new": "growth"}

    def test_in_a_pool_that_is_all_new_nobody_is_a_stranger(self):
        case = Case(has_old=False)
        case.serve(100, "new")
        assert case.watch.alarms == {}

    def test_few_decisions_say_nothing(self):
        case = Case()
        case.serve(19, "new")
        assert case.watch.alarms == {}
        case.serve(1, "new")
        assert case.raised

    def test_an_adapter_that_is_gone_alarms_no_more(self):
        case = Case()
        case.serve(40, "new")
        case.catalog.current = catalog_view({"old": ["y"]})
        assert case.watch.alarms == {}

    def test_before_the_first_snapshot_nothing_alarms(self):
        case = Case()
        case.catalog.current = None
        case.serve(40, "new")
        assert case.watch.alarms == {}
