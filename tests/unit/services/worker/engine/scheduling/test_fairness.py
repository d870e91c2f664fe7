"""Shares of service between flows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.scheduling.fairness import FairShares, flow_of
from tests.builders.engine import make_plan

_A, _B = ("a",), ("b",)


class TestFlows:
    def test_budgets_and_order_do_not_matter_but_members_do(self) -> None:
        first = make_plan(("a", 4, 2, 0.3), ("b", 4, 1, 0.7))
        second = make_plan(("b", 4, 4, 0.1), ("a", 4, 1, 0.9), ("c", 4, 0, 0.5))
        assert flow_of(first) == flow_of(second) == ("a", "b")
        assert flow_of(make_plan(("a", 4, 2, 1.0))) == ("a",)
        assert flow_of(make_plan()) == ()


class TestShares:
    def test_service_is_counted_by_flow(self) -> None:
        shares = FairShares()
        shares.join(_A)
        shares.join(_B)
        shares.charge(_A, 10)
        assert (shares.service(_A), shares.service(_B)) == (10, 0)

    def test_a_flow_that_rested_has_saved_nothing(self) -> None:
        shares = FairShares()
        shares.join(_A)
        shares.join(_B)
        shares.leave(_B)
        shares.charge(_A, 100)
        shares.join(_B)
        assert shares.service(_B) == 100

    def test_a_flow_that_leaves_and_comes_back_at_once_has_not_shed_what_it_had(self) -> None:
        shares = FairShares()
        shares.join(_A)
        shares.join(_B)
        shares.charge(_A, 100)
        shares.leave(_A)
        shares.join(_A)
        assert shares.service(_A) == 100

    def test_a_flow_ahead_of_all_others_is_passed_however_many_come_for_the_first_time(self) -> None:
        shares = FairShares()
        shares.join(_A)
        shares.join(_B)
        shares.charge(_A, 50)
        for number in range(100):
            newcomer = (f"n{number}",)
            shares.join(newcomer)
            if shares.service(newcomer) >= shares.service(_A):
                return
            shares.charge(newcomer, 5)
            shares.leave(newcomer)
        pytest.fail("newcomers stay ahead for ever")

    def test_nothing_is_remembered_of_an_empty_engine(self) -> None:
        shares = FairShares()
        for flow in (_A, _B):
            shares.join(flow)
            shares.charge(flow, 7)
        for flow in (_A, _B):
            shares.leave(flow)
        assert shares.num_flows == 0
        shares.join(_A)
        assert shares.service(_A) == 0

    @settings(max_examples=60, deadline=None)
    @given(
        actions=st.lists(st.tuples(st.sampled_from(["join", "leave", "charge"]), st.integers(0, 5)), max_size=200),
        cost=st.integers(1, 20),
    )
    def test_any_history_keeps_counters_for_those_that_need_one(self, actions, cost) -> None:
        shares, present = FairShares(), []
        for action, number in actions:
            flow = (f"f{number}",)
            if action == "join":
                before = {one: shares.service(one) for one in set(present)}
                shares.join(flow)
                present.append(flow)
                # Joining takes nothing from those that are there.
                assert all(shares.service(one) == service for one, service in before.items())
            elif flow in present:
                if action == "leave":
                    shares.leave(flow)
                    present.remove(flow)
                else:
                    before = shares.service(flow)
                    shares.charge(flow, cost)
                    assert shares.service(flow) == before + cost
            shares.check_integrity()
            assert shares.num_flows <= 6
