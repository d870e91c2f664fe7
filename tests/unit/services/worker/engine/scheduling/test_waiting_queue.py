"""Who is first in the queue."""

from __future__ import annotations

import itertools

from services.worker.engine.scheduling.fairness import FairShares
from services.worker.engine.scheduling.priorities import AgedPriorities, choose_victim
from services.worker.engine.scheduling.waiting_queue import WaitingQueue
from tests.builders.active_requests import make_active


class World:
    def __init__(self) -> None:
        self.shares = FairShares()
        self.queue = WaitingQueue(self.shares)
        self._arrivals = itertools.count()

    def add(self, **options):
        active = make_active(**options)
        active.arrival_idx = next(self._arrivals)
        self.shares.join(active.flow)
        self.queue.add(active)
        return active

    def first(self, now: float = 0.0):
        return self.queue.first(AgedPriorities(most_urgent=self.queue.most_urgent, now=now, ageing_seconds=10.0))


class TestOrder:
    def test_first_come_first_served_within_a_flow(self) -> None:
        world = World()
        first, second = world.add(adapter="a"), world.add(adapter="a")
        assert world.first() is first
        world.queue.remove(first)
        assert world.first() is second

    def test_the_flow_with_least_service_before_the_first_to_come(self) -> None:
        world = World()
        served, other = world.add(adapter="a"), world.add(adapter="b")
        assert world.first() is served
        world.shares.charge(served.flow, 1)
        assert world.first() is other

    def test_priority_before_fairness(self) -> None:
        world = World()
        world.add(adapter="a")
        urgent = world.add(adapter="b", priority=-1)
        world.shares.charge(urgent.flow, 100)
        assert world.first() is urgent

    def test_those_that_were_preempted_before_others_of_their_priority(self) -> None:
        world = World()
        world.add(adapter="a")
        preempted = world.add(adapter="b")
        preempted.num_preemptions = 1
        world.shares.charge(preempted.flow, 100)
        assert world.first() is preempted
        assert world.add(adapter="a", priority=-1) is world.first()

    def test_those_whose_rocs_are_not_there_are_passed_over(self) -> None:
        world = World()
        world.add(is_resident=False, priority=-5)
        assert world.first() is None
        resident = world.add()
        assert world.first() is resident


class TestAge:
    def test_age_makes_up_for_priority(self) -> None:
        world = World()
        old = world.add(adapter="a", priority=2)
        urgent = world.add(adapter="b", submitted_at=19.0)
        assert world.first(now=19.0) is urgent
        assert world.first(now=20.0) is old

    def test_among_equals_age_changes_nothing_about_fairness(self) -> None:
        world = World()
        old = world.add(adapter="a")
        young = world.add(adapter="b", submitted_at=1e6)
        world.shares.charge(old.flow, 1)
        assert world.first(now=1e6) is young

    def test_nobody_becomes_more_urgent_than_the_most_urgent(self) -> None:
        requests = [make_active(priority=3), make_active(priority=-2)]
        priorities = AgedPriorities(most_urgent=min(one.priority for one in requests), now=1e9, ageing_seconds=10.0)
        assert [priorities.of(active) for active in requests] == [-2, -2]


class TestVictims:
    def _choose(self, *requests, now=0.0, for_priority=None):
        for idx, active in enumerate(requests):
            active.arrival_idx = idx
        priorities = AgedPriorities(most_urgent=min(one.priority for one in requests), now=now, ageing_seconds=10.0)
        return choose_victim(requests, priorities, for_priority=for_priority)

    def test_the_least_urgent_then_the_youngest(self) -> None:
        lax, urgent, young = make_active(priority=1), make_active(), make_active()
        assert self._choose(lax, urgent, young) is lax
        assert self._choose(urgent, young) is young

    def test_only_less_urgent_ones_give_way_to_a_request(self) -> None:
        assert self._choose(make_active(), for_priority=0) is None
        assert self._choose(lax := make_active(priority=1), for_priority=0) is lax

    def test_age_protects(self) -> None:
        lax = make_active(priority=1)
        assert self._choose(lax, make_active(), now=10.0, for_priority=0) is None

    def test_the_shielded_are_left_alone(self) -> None:
        shielded = make_active(priority=9)
        shielded.is_shielded = True
        assert self._choose(shielded) is None
        assert self._choose(shielded, other := make_active()) is other
