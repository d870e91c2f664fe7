"""A device that does not compute any more for this process: everybody hears of it, and nobody is taken any more."""

from __future__ import annotations

import time

import pytest

from hilora.errors import Unavailable
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [10, 20, 30, 40]


class LosableEngine:
    """An engine whose device can be taken away: from then on, every call to it raises."""

    def __init__(self, *, max_num_seqs: int = 2, max_step_seconds: float = 30.0) -> None:
        source = InMemoryComponentSource({"a": make_adapter(linear_shapes(load_tiny().model))})
        self.health: list[bool] = []
        self.engine = make_engine(
            load_tiny(),
            source,
            max_num_seqs=max_num_seqs,
            max_step_seconds=max_step_seconds,
            on_health=self.health.append,
        )
        self.is_lost = False
        self.num_passes = 0
        runner = self.engine._runner
        for owner, name in (
            (runner, "execute"),
            (runner.kv_cache, "free"),
            (runner.kv_cache, "allocate"),
            (runner.pool, "write"),
        ):
            setattr(owner, name, self._losable(name, getattr(owner, name)))

    def _losable(self, name, call):
        def losable(*args, **kwargs):
            self.num_passes += name == "execute"
            if self.is_lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might ...")
            return call(*args, **kwargs)

        return losable

    def run_until_idle(self, max_steps: int = 200) -> None:
        for _ in range(max_steps):
            if not self.engine._in_flight:
                return
            if not self.engine.run_step():
                time.sleep(0.002)
        raise AssertionError("requests did not end")


def _codes(*recorders: Recorder) -> list[str]:
    return [recorder.error.code for recorder in recorders]


@pytest.fixture
def losable() -> LosableEngine:
    return LosableEngine()


class TestLoss:
    def test_all_requests_end_running_and_waiting_ones(self, losable) -> None:
        running = [submit(losable.engine, f"r{idx}", _PROMPT) for idx in range(2)]
        losable.engine.run_step()
        waiting = [submit(losable.engine, f"w{idx}", _PROMPT, plan=make_plan(("a", 4, 2, 1.0))) for idx in range(3)]
        losable.is_lost = True
        passes = losable.num_passes
        losable.engine.run_step()
        assert _codes(*running, *waiting) == ["device_lost"] * 5
        assert all(recorder.num_terminal == 1 for recorder in (*running, *waiting))
        # Trying it request by request could only fail.
        assert losable.num_passes == passes + 1
        stats = losable.engine.stats()
        assert stats.is_device_lost and (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.counters.num_requests_failed == 5

    def test_it_is_told_once_and_for_good(self, losable) -> None:
        submit(losable.engine, "r", _PROMPT)
        losable.is_lost = True
        losable.engine.run_step()
        losable.engine._recover()
        assert not losable.engine.run_step() and not losable.engine.run_step()
        assert losable.health == [False]

    def test_new_requests_are_refused(self, losable) -> None:
        submit(losable.engine, "r", _PROMPT)
        losable.is_lost = True
        losable.engine.run_step()
        losable.is_lost = False
        with pytest.raises(Unavailable) as caught:
            submit(losable.engine, "late", _PROMPT)
        assert caught.value.code == "device_lost"
        assert not losable.engine._in_flight

    def test_it_is_noticed_where_components_are_written(self, losable) -> None:
        losable.is_lost = True
        cold = submit(losable.engine, "cold", _PROMPT, plan=make_plan(("a", 4, 2, 1.0)))
        losable.run_until_idle()
        assert _codes(cold) == ["device_lost"]
        assert losable.health == [False]

    def test_it_is_noticed_where_memory_is_given(self, losable) -> None:
        losable.engine._runner.kv_cache.can_admit = lambda num_tokens: True
        losable.is_lost = True
        recorder = submit(losable.engine, "r", _PROMPT)
        losable.engine.run_step()
        assert _codes(recorder) == ["device_lost"]
        assert losable.health == [False]

    def test_it_is_noticed_where_tokens_are_drawn(self, losable, monkeypatch) -> None:
        """Errors of kernels come late: the first call that waits for the device hears of them."""

        def late(*_):
            raise RuntimeError("CUDA error: device-side assert triggered")

        monkeypatch.setattr("services.worker.engine.execution.step_executor.sample", late)
        recorders = [submit(losable.engine, name, _PROMPT) for name in "ab"]
        losable.engine.run_step()
        assert _codes(*recorders) == ["device_lost"] * 2
        assert losable.health == [False]

    def test_it_is_noticed_by_those_that_bring_a_gate(self, losable, monkeypatch) -> None:
        def failing(_plan):
            raise RuntimeError("CUDA error: device-side assert triggered")

        running = submit(losable.engine, "r", _PROMPT)
        monkeypatch.setattr(losable.engine._runner.gates, "acquire", failing)
        with pytest.raises(Unavailable) as caught:
            submit(losable.engine, "gated", _PROMPT)
        assert caught.value.code == "device_lost"
        losable.engine.run_step()
        assert _codes(running) == ["device_lost"]

    def test_an_error_that_a_device_survives_ends_nobody_else(self, losable) -> None:
        execute = losable.engine._runner.execute

        def refusing(batch):
            if any(active.request_id == "f" for active in batch.sampling):
                raise RuntimeError("CUDA error: invalid configuration argument")
            return execute(batch)

        losable.engine._runner.execute = refusing
        faulty, healthy = submit(losable.engine, "f", _PROMPT), submit(losable.engine, "h", _PROMPT)
        losable.run_until_idle()
        assert _codes(faulty) == ["generation_failed"]
        assert healthy.finished.num_completion_tokens == 8
        assert losable.health == []


def test_a_started_engine_ends_everybody_and_stops_at_once() -> None:
    losable = LosableEngine()
    losable.engine.start()
    losable.is_lost = True
    recorder = submit(losable.engine, "r", _PROMPT)
    assert recorder.done.wait(10)
    assert _codes(recorder) == ["device_lost"]
    losable.engine.stop(drain_seconds=5)
    assert losable.engine._thread is not None and not losable.engine._thread.is_alive()
    assert losable.health == [False]
