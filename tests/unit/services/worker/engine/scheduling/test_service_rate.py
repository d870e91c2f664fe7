"""When those that find the queue full should come back."""

from __future__ import annotations

import pytest

from services.worker.engine.scheduling.service_rate import ServiceRate


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _after(clock: Clock, *, num_departures: int, seconds_each: float) -> ServiceRate:
    rate = ServiceRate(clock=clock)
    rate.observe(100)
    for _ in range(num_departures):
        clock.now += seconds_each
        rate.note()
    return rate


def test_it_follows_from_how_fast_the_queue_moves(clock) -> None:
    rate = _after(clock, num_departures=20, seconds_each=0.5)
    assert rate.seconds_until(10) == pytest.approx(5.0)


def test_the_recent_past_alone_counts(clock) -> None:
    rate = _after(clock, num_departures=50, seconds_each=30.0)
    for _ in range(64):
        clock.now += 0.1
        rate.note()
    assert rate.seconds_until(10) == pytest.approx(1.0)


def test_a_queue_that_stands_still_takes_longer_and_longer(clock) -> None:
    rate = _after(clock, num_departures=11, seconds_each=0.1)
    clock.now += 9.0
    assert rate.seconds_until(10) == pytest.approx(10.0)


def test_it_stays_within_reason(clock) -> None:
    assert ServiceRate(clock=clock).seconds_until(1000) == 1.0
    assert _after(clock, num_departures=5, seconds_each=0.0).seconds_until(10) == 0.1
    assert _after(clock, num_departures=5, seconds_each=99.0).seconds_until(10) == 60.0


def test_hours_in_which_nobody_waits_do_not_count(clock) -> None:
    rate = _after(clock, num_departures=21, seconds_each=0.5)
    rate.observe(0)
    clock.now += 3600.0
    assert rate.seconds_until(10) == pytest.approx(5.0)
    rate.observe(50)
    clock.now += 0.5
    rate.note()
    assert rate.seconds_until(10) == pytest.approx(5.0)


def test_who_finds_a_place_at_once_says_nothing(clock) -> None:
    rate = _after(clock, num_departures=21, seconds_each=0.5)
    rate.observe(0)
    for _ in range(64):
        clock.now += 30.0
        rate.note()
        rate.observe(0)
    assert rate.seconds_until(10) == pytest.approx(5.0)
