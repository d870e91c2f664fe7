"""A step that does not return."""

from __future__ import annotations

import logging
import threading

import pytest

from hilora.errors import Unavailable
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.engine.watchdog import Watchdog
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [10, 20, 30, 40]


class Heard:
    """What a watchdog says, and a clock that it believes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.watchdog = Watchdog(
            max_step_seconds=10.0,
            on_stuck=lambda: self.said.append("stuck"),
            on_recovery=lambda: self.said.append("recovered"),
            clock=lambda: self.now,
        )


class TestWatchdog:
    def test_a_step_within_its_time_is_no_news(self) -> None:
        heard = Heard()
        heard.watchdog.begin_step()
        heard.now = 10.0
        heard.watchdog.check()
        heard.watchdog.end_step()
        heard.now = 99.0
        heard.watchdog.check()
        assert heard.said == []

    def test_a_stuck_step_is_told_once_and_so_is_its_return(self) -> None:
        heard = Heard()
        for _ in range(2):
            heard.watchdog.begin_step()
            heard.now += 10.5
            heard.watchdog.check()
            heard.watchdog.check()
            assert heard.watchdog.is_stuck
            heard.watchdog.end_step()
            assert not heard.watchdog.is_stuck
            heard.watchdog.check()
        assert heard.said == ["stuck", "recovered"] * 2

    def test_what_its_owner_raises_ends_neither_thread(self) -> None:
        heard = Heard()

        def failing() -> None:
            heard.said.append("failed")
            raise RuntimeError("the event loop is closed")

        heard.watchdog._on_stuck = heard.watchdog._on_recovery = failing
        heard.watchdog.begin_step()
        heard.now = 11.0
        heard.watchdog.check()
        heard.watchdog.end_step()
        assert heard.said == ["failed"] * 2 and not heard.watchdog.is_stuck

    def test_it_says_where_the_thread_is(self, caplog) -> None:
        heard, may_go_on = Heard(), threading.Event()

        def hang_in_here() -> None:
            may_go_on.wait(20)

        thread = threading.Thread(target=hang_in_here)
        thread.start()
        heard.watchdog.start(thread)
        heard.watchdog.begin_step()
        heard.now = 11.0
        with caplog.at_level(logging.ERROR):
            heard.watchdog.check()
        heard.watchdog.stop()
        may_go_on.set()
        thread.join()
        assert "hang_in_here" in caplog.text


class HungEngine:
    """A started engine whose next forward pass blocks until it is let go."""

    def __init__(self) -> None:
        shapes = linear_shapes(load_tiny().model)
        self.source = InMemoryComponentSource({"a": make_adapter(shapes)})
        self.health: list[bool] = []
        self.is_unhealthy, self.is_healthy = threading.Event(), threading.Event()
        self.engine = make_engine(
            load_tiny(), self.source, max_num_seqs=1, max_step_seconds=0.2, on_health=self._on_health
        )
        self.may_return, self.has_hung = threading.Event(), threading.Event()
        execute = self.engine._runner.execute

        def hanging(batch):
            self.has_hung.set()
            assert self.may_return.wait(30)
            return execute(batch)

        self.engine._runner.execute = hanging
        self.engine.start()

    def _on_health(self, is_healthy: bool) -> None:  # noqa: FBT001  (a callback's one argument)
        self.health.append(is_healthy)
        (self.is_healthy if is_healthy else self.is_unhealthy).set()


@pytest.fixture
def hung():
    hung = HungEngine()
    yield hung
    hung.may_return.set()
    hung.engine.stop(drain_seconds=5)


class TestEngine:
    def test_those_that_wait_are_sent_away_and_the_engine_recovers(self, hung) -> None:
        engine = hung.engine
        running = submit(engine, "running", _PROMPT)
        assert hung.has_hung.wait(10)
        waiting = [submit(engine, f"w{idx}", _PROMPT, plan=make_plan(("a", 4, 2, 1.0))) for idx in range(3)]
        assert hung.is_unhealthy.wait(10)
        assert all(recorder.done.wait(10) for recorder in waiting)
        assert {recorder.error.code for recorder in waiting} == {"engine_stuck"}
        assert engine.stats().is_stuck and not running.done.is_set()
        with pytest.raises(Unavailable) as caught:
            submit(engine, "late", _PROMPT)
        assert caught.value.code == "engine_stuck"
        hung.may_return.set()
        assert hung.is_healthy.wait(10)
        assert running.done.wait(10)
        assert running.finished.num_completion_tokens == 8
        later = submit(engine, "w0", _PROMPT)
        assert later.done.wait(10) and later.finished.num_completion_tokens == 8
        assert [recorder.num_terminal for recorder in (*waiting, running, later)] == [1] * 5
        assert hung.health == [False, True]
        engine.stop(drain_seconds=5)
        engine.check_integrity()
        counters = engine.stats().counters
        assert (counters.num_requests_failed, counters.num_requests_finished) == (3, 2)

    def test_one_that_gave_way_in_the_middle_of_its_answer_goes_on_with_it(self, hung) -> None:
        """It is in the queue, but nobody else could go on with what it has told."""
        hung.may_return.set()
        execute, ordinary = hung.engine._runner.execute, Recorder()

        def interrupted(batch):
            is_urgent = any(active.request_id == "urgent" for active in batch.sampling)
            if is_urgent and not hung.is_unhealthy.is_set():
                hung.may_return.clear()
            elif len(ordinary.token_ids) == 2:
                submit(hung.engine, "urgent", _PROMPT, priority=-1)
            return execute(batch)

        hung.engine._runner.execute = interrupted
        sampling = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
        request = EngineRequest(request_id="ordinary", prompt_token_ids=tuple(_PROMPT), sampling=sampling)
        hung.engine.submit(request, ordinary)
        assert hung.is_unhealthy.wait(10)
        assert 2 <= len(ordinary.token_ids) < 20 and not ordinary.done.is_set()
        hung.may_return.set()
        assert ordinary.done.wait(10)
        assert ordinary.finished.num_completion_tokens == 20
        assert hung.engine.stats().counters.num_preemptions == 1

    def test_a_stop_does_not_wait_for_ever(self, hung) -> None:
        running = submit(hung.engine, "running", _PROMPT)
        assert hung.has_hung.wait(10)
        hung.engine.stop(drain_seconds=0)
        assert running.error.code == "engine_stuck"
        hung.may_return.set()
        hung.engine._thread.join(10)
        assert running.num_terminal == 1
        hung.engine.check_integrity()
