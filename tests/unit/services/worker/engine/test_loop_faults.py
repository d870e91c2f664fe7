"""Faults of the loop's own work: who they end, and that nobody else notices."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from hilora.errors import GenerationFailed, Unavailable
from services.worker.engine.output.events import Started
from services.worker.engine.scheduling.request import EngineRequest
from services.worker.lora.pool.component_fetches import ComponentFetches
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [10, 20, 30, 40]


class NativePanic(BaseException):
    """What a library that is not written in Python raises when it fails: no `Exception`."""


@pytest.fixture
def engine():
    engine = make_engine(load_tiny())
    yield engine
    engine.check_integrity()
    engine.stop(drain_seconds=0)


@pytest.fixture
def started():
    source = InMemoryComponentSource({"a": make_adapter(linear_shapes(load_tiny().model))})
    engine = make_engine(load_tiny(), source, max_num_seqs=4)
    engine.start()
    yield engine
    engine.stop(drain_seconds=1)


class TestPlaces:
    """Memory for keys and values that cannot be given, though it should be there."""

    @pytest.mark.parametrize("call", ["allocate", "reserve"])
    def test_a_request_that_gets_no_place_ends_alone(self, call) -> None:
        engine = make_engine(load_tiny(), kv_layout="pages")
        beside = submit(engine, "beside", _PROMPT)
        engine.run_step()
        give = getattr(engine._runner.kv_cache, call)

        def failing(owner, *args, **kwargs):
            if getattr(owner, "owner", owner) == "faulty":
                raise torch.OutOfMemoryError("the device is full")
            return give(owner, *args, **kwargs)

        setattr(engine._runner.kv_cache, call, failing)
        faulty = submit(engine, "faulty", _PROMPT)
        behind = submit(engine, "behind", _PROMPT)
        run_until_done(engine, beside, faulty, behind)
        assert isinstance(faulty.error, GenerationFailed)
        assert beside.finished.num_completion_tokens == behind.finished.num_completion_tokens == 8
        engine.check_integrity()

    def test_what_could_not_be_freed_keeps_nothing_else(self, monkeypatch) -> None:
        source = InMemoryComponentSource({"a": make_adapter(linear_shapes(load_tiny().model))})
        engine = make_engine(load_tiny(), source)
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a", 4, 2, 1.0)))
        while not recorder.token_ids:
            engine.run_step()
        close = engine._residency.close

        def failing(ticket):
            close(ticket)
            raise RuntimeError("a bug of the books")

        monkeypatch.setattr(engine._residency, "close", failing)
        run_until_done(engine, recorder)
        assert engine.stats().kv_cache_usage == 0
        engine.check_integrity()


class TestSteps:
    def test_a_failed_pass_lets_go_of_its_tensors_before_it_is_tried_again(self, engine) -> None:
        execute, kept = engine._runner.execute, []

        def cramped(batch):
            activations = torch.zeros(8)
            gc.collect()
            kept.append(sum(one() is not None for one in made))
            made.append(weakref.ref(activations))
            if len(batch.sampling) > 1:
                raise torch.OutOfMemoryError("no room for the activations of all")
            return execute(batch)

        made: list[weakref.ref] = []
        engine._runner.execute = cramped
        run_until_done(engine, *(submit(engine, f"r{idx}", _PROMPT, max_tokens=1) for idx in range(3)))
        assert kept == [0, 0, 0, 0]

    def test_logits_that_cannot_be_picked_are_computed_request_by_request(self, engine) -> None:
        build = engine._runner.build_batch

        def cramped(works):
            batch = build(works)
            if len(works) > 1:
                object.__setattr__(batch, "sampled", (10**6,))
            return batch

        engine._runner.build_batch = cramped
        recorders = [submit(engine, f"r{idx}", _PROMPT, max_tokens=2) for idx in range(3)]
        run_until_done(engine, *recorders)
        assert [recorder.finished.num_completion_tokens for recorder in recorders] == [2, 2, 2]

    def test_a_step_whose_every_request_ended_at_once_is_followed_by_the_next(self) -> None:
        engine = make_engine(load_tiny(), max_num_seqs=1)

        def gone(event):
            if isinstance(event, Started):
                raise ConnectionError("the client is gone")

        engine.submit(EngineRequest(request_id="gone", prompt_token_ids=tuple(_PROMPT)), gone)
        waiting = submit(engine, "waiting", _PROMPT)
        assert engine.run_step(), "the loop would rest while a request waits"
        run_until_done(engine, waiting)


class TestCost:
    def test_a_step_weighs_what_is_in_main_memory_once(self, monkeypatch) -> None:
        """Not once for each of those that wait: a queue of cold adapters would slow down the answers being written."""
        shapes = linear_shapes(load_tiny().model)
        source = InMemoryComponentSource({f"a{idx}": make_adapter(shapes, seed=idx) for idx in range(24)})
        engine = make_engine(load_tiny(), source, max_num_seqs=1, roc_pool_bytes=20_000)
        recorders = [
            submit(engine, f"r{idx}", _PROMPT, plan=make_plan((f"a{idx}", 4, 2, 1.0)), max_tokens=1)
            for idx in range(24)
        ]
        weighed: list[int] = []
        weigh = ComponentFetches.held_bytes.fget
        monkeypatch.setattr(
            ComponentFetches, "held_bytes", property(lambda fetches: (weighed.append(1), weigh(fetches))[1])
        )
        for _ in range(20):
            engine.run_step()
        assert len(weighed) <= 20
        monkeypatch.undo()
        run_until_done(engine, *recorders, max_steps=3000)


class TestLoop:
    def test_a_panic_below_python_ends_its_request_alone(self, started) -> None:
        broken = Recorder()

        def sink(event):
            broken(event)
            if isinstance(event, Started):
                raise NativePanic

        started.submit(EngineRequest(request_id="broken", prompt_token_ids=tuple(_PROMPT)), sink)
        assert broken.done.wait(10), "the engine's thread is gone"
        assert isinstance(broken.error, GenerationFailed)
        later = submit(started, "later", _PROMPT)
        assert later.done.wait(10) and later.finished.num_completion_tokens == 8

    def test_a_panic_of_the_loop_itself_does_not_end_its_thread(self, started, monkeypatch) -> None:
        def broken():
            monkeypatch.undo()
            raise NativePanic

        monkeypatch.setattr(started._scheduler, "schedule", broken)
        recorder = submit(started, "r", _PROMPT)
        assert recorder.done.wait(10), "the engine's thread is gone"
        assert isinstance(recorder.error, GenerationFailed)
        later = submit(started, "later", _PROMPT)
        assert later.done.wait(10) and later.finished.num_completion_tokens == 8

    def test_books_that_break_at_a_request_s_end_keep_nobody_waiting(self, started, monkeypatch) -> None:
        release = started._runner.gates.release

        def broken(plan):
            monkeypatch.undo()
            release(plan)
            raise RuntimeError("a bug")

        monkeypatch.setattr(started._runner.gates, "release", broken)
        recorders = [submit(started, name, _PROMPT) for name in ("first", "second")]
        assert all(recorder.done.wait(10) for recorder in recorders)
        assert [recorder.finished.num_completion_tokens for recorder in recorders] == [8, 8]

    def test_errors_that_cause_one_another_can_be_told(self, engine) -> None:
        def failing(batch):
            one, other = Unavailable("one"), Unavailable("other")
            one.__cause__, other.__cause__ = other, one
            raise one

        engine._runner.execute = failing
        recorder = submit(engine, "r", _PROMPT)
        run_until_done(engine, recorder)
        assert isinstance(recorder.error, Unavailable)
