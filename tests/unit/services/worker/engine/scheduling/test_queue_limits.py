"""What becomes of requests that cannot run soon."""

from __future__ import annotations

import time

import pytest

from hilora.errors import Exhausted, InvalidInput, QueueFull
from tests.builders.engine import InMemoryComponentSource, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [10, 20, 30, 40]


@pytest.fixture
def source() -> InMemoryComponentSource:
    return InMemoryComponentSource({"a": make_adapter(linear_shapes(load_tiny().model))})


class TestTimeouts:
    def test_a_request_that_finds_no_place_in_time_fails(self) -> None:
        engine = make_engine(load_tiny(), max_num_seqs=1, max_queue_seconds=0.05)
        running = submit(engine, "running", _PROMPT, max_tokens=60)
        engine.run_step()
        waiting = submit(engine, "waiting", _PROMPT)
        engine.run_step()
        assert not waiting.events
        time.sleep(0.06)
        engine.run_step()
        assert isinstance(waiting.error, Exhausted) and waiting.error.code == "queue_timeout"
        assert waiting.error.retry_after_seconds > 0 and "all places" in str(waiting.error)
        run_until_done(engine, running)
        assert running.finished.num_completion_tokens == 60
        counters = engine.stats().counters
        assert (counters.num_queue_timeouts, counters.num_requests_failed) == (1, 1)

    def test_a_request_whose_adapter_does_not_arrive_in_time_fails(self, source) -> None:
        engine = make_engine(load_tiny(), source, max_queue_seconds=0.05)
        source.gate.clear()
        cold = submit(engine, "cold", _PROMPT, plan=make_plan(("a", 4, 2, 1.0)))
        engine.run_step()
        time.sleep(0.06)
        engine.run_step()
        assert cold.error.code == "queue_timeout" and "adapters" in str(cold.error)
        source.gate.set()
        engine.check_integrity()
        engine.stop(drain_seconds=0)

    def test_a_preempted_request_has_begun_and_may_wait(self) -> None:
        engine = make_engine(load_tiny(), max_num_seqs=1, max_queue_seconds=0.05)
        preempted = submit(engine, "preempted", _PROMPT)
        engine.run_step()
        urgent = submit(engine, "urgent", _PROMPT, priority=-1)
        engine.run_step()
        time.sleep(0.06)
        run_until_done(engine, preempted, urgent)
        assert preempted.finished.num_completion_tokens == 8


class TestFullQueue:
    def test_the_time_to_come_back_follows_from_the_rate(self, monkeypatch) -> None:
        engine = make_engine(load_tiny(), max_num_seqs=1, max_waiting=4)
        asked: list[float] = []
        monkeypatch.setattr(engine._rate, "seconds_until", lambda number: asked.append(number) or 7.5)
        recorders = [submit(engine, f"r{idx}", _PROMPT, max_tokens=1) for idx in range(4)]
        with pytest.raises(QueueFull) as caught:
            submit(engine, "more", _PROMPT)
        assert caught.value.retry_after_seconds == 7.5
        assert asked == [2.0]
        run_until_done(engine, *recorders)

    def test_every_departure_is_noted(self, monkeypatch) -> None:
        engine = make_engine(load_tiny(), max_num_seqs=1)
        noted: list[int] = []
        monkeypatch.setattr(engine._rate, "note", lambda: noted.append(1))
        recorders = [submit(engine, f"r{idx}", _PROMPT) for idx in range(3)]
        engine.abort("r2")
        run_until_done(engine, *recorders)
        assert len(noted) == 3


@pytest.mark.parametrize("priority", [-101, 101])
def test_priorities_have_a_range(priority) -> None:
    engine = make_engine(load_tiny())
    with pytest.raises(InvalidInput) as caught:
        submit(engine, "r", _PROMPT, priority=priority)
    assert caught.value.code == "invalid_priority"
