"""A fault ends the request it happened in, and nothing else."""

from __future__ import annotations

import pytest

from hilora.errors import (
    AdapterShapeMismatch,
    GenerationFailed,
    RegistryUnavailable,
    UnknownAdapter,
)
from services.worker.engine.output.events import FinishReason, Started, TextDelta
from services.worker.engine.scheduling.request import EngineRequest
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [10, 20, 30, 40]


@pytest.fixture
def source() -> InMemoryComponentSource:
    shapes = linear_shapes(load_tiny().model)
    return InMemoryComponentSource({f"a{idx}": make_adapter(shapes, seed=idx) for idx in range(4)})


@pytest.fixture
def engine(source):
    engine = make_engine(load_tiny(), source)
    yield engine
    engine.check_integrity()
    engine.stop(drain_seconds=0)


def _is_at_rest(engine) -> bool:
    stats = engine.stats()
    return (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)


class TestFaults:
    """Each fault beside a healthy request, whose answer must not change by a token."""

    @pytest.fixture
    def healthy(self, source) -> list[int]:
        engine = make_engine(load_tiny(), source)
        recorder = submit(engine, "h", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)), max_tokens=12)
        run_until_done(engine, recorder)
        return recorder.token_ids

    def _beside(self, engine, healthy: list[int], *faulty: Recorder) -> None:
        recorder = submit(engine, "h", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)), max_tokens=12)
        run_until_done(engine, recorder, *faulty)
        assert recorder.token_ids == healthy
        assert all(one.num_terminal == 1 for one in (recorder, *faulty))
        engine.check_integrity()
        assert _is_at_rest(engine)

    def test_an_adapter_of_nans(self, engine, source, healthy) -> None:
        for rocs in source.adapters["a3"].modules.values():
            rocs.b_RO[1] = float("nan")
        faulty = submit(engine, "f", _PROMPT, plan=make_plan(("a3", 4, 4, 1.0)), max_tokens=12)
        self._beside(engine, healthy, faulty)
        assert faulty.error.code == "non_finite_logits"
        # The slot it had is clean for the next one.
        self._beside(engine, healthy)

    def test_nan_prompts_aborted_half_way_leave_clean_slots(self, engine, source, healthy) -> None:
        for rocs in source.adapters["a3"].modules.values():
            rocs.a_RD[:] = float("nan")
        long = submit(engine, "f", [7] * 90, plan=make_plan(("a3", 4, 4, 1.0)))
        while not long.events:
            engine.run_step()
        engine.abort("f")
        self._beside(engine, healthy, long)
        assert long.finished.finish_reason is FinishReason.ABORT

    @pytest.mark.parametrize(
        ("fault", "expected", "code"),
        [
            (RegistryUnavailable("away"), RegistryUnavailable, "registry_unavailable"),
            (UnknownAdapter("gone"), UnknownAdapter, "unknown_adapter"),
            (OSError("disk"), GenerationFailed, "component_load_failed"),
        ],
    )
    def test_components_that_cannot_be_fetched(self, engine, source, healthy, fault, expected, code) -> None:
        source.faults["a3"] = fault
        faulty = submit(engine, "f", _PROMPT, plan=make_plan(("a1", 4, 1, 0.5), ("a3", 4, 1, 0.5)))
        self._beside(engine, healthy, faulty)
        assert isinstance(faulty.error, expected) and faulty.error.code == code
        source.faults.clear()
        run_until_done(engine, submit(engine, "again", _PROMPT, plan=make_plan(("a3", 4, 1, 1.0))))

    def test_components_of_another_model(self, engine, source, healthy) -> None:
        source.adapters["a3"] = make_adapter({"model.layers.7.mlp.up_proj": (32, 48)})
        unknown = submit(engine, "f", _PROMPT, plan=make_plan(("a3", 4, 1, 1.0)))
        source.adapters["a2"] = make_adapter({"model.layers.0.mlp.up_proj": (31, 48)})
        misshapen = submit(engine, "g", _PROMPT, plan=make_plan(("a2", 4, 1, 1.0)))
        self._beside(engine, healthy, unknown, misshapen)
        assert unknown.error.code == "unknown_target_module"
        assert isinstance(misshapen.error, AdapterShapeMismatch)

    def test_a_write_that_fails(self, engine, source, healthy) -> None:
        write = engine._runner.pool.write

        def failing(key, adapter):
            if key.adapter_id == "a3":
                raise RuntimeError("out of memory")
            write(key, adapter)

        engine._runner.pool.write = failing
        faulty = submit(engine, "f", _PROMPT, plan=make_plan(("a1", 4, 1, 0.5), ("a3", 4, 1, 0.5)))
        self._beside(engine, healthy, faulty)
        assert faulty.error.code == "component_load_failed"

    @pytest.mark.parametrize("num_good_passes", [0, 3])
    def test_a_request_that_breaks_the_batched_forward_pass(self, engine, healthy, num_good_passes) -> None:
        """A poisoned request makes every pass it is part of raise, from its n-th pass on."""
        execute = engine._runner.execute
        passes = 0

        def poisoned(batch):
            nonlocal passes
            if 77 in batch.token_ids_T.tolist() or any(one.request_id == "f" for one in batch.sampling):
                passes += 1
                if passes > num_good_passes:
                    raise RuntimeError("device-side assert")
            return execute(batch)

        engine._runner.execute = poisoned
        faulty = submit(engine, "f", [77, 10], max_tokens=12)
        self._beside(engine, healthy, faulty)
        assert faulty.error.code == "generation_failed"

    @pytest.mark.parametrize("breaking", [Started, TextDelta])
    def test_a_sink_that_raises(self, engine, healthy, breaking) -> None:
        recorder = Recorder()

        def sink(event):
            recorder(event)
            if isinstance(event, breaking):
                raise ConnectionError("the client is gone")

        engine.submit(EngineRequest(request_id="f", prompt_token_ids=tuple(_PROMPT)), sink)
        self._beside(engine, healthy, recorder)
        assert isinstance(recorder.error, GenerationFailed)

    def test_a_fault_of_the_loop_itself_ends_what_is_in_flight_and_nothing_later(self, source, healthy) -> None:
        engine = make_engine(load_tiny(), source)
        engine.start()
        schedule = engine._scheduler.schedule

        def broken():
            engine._scheduler.schedule = schedule
            raise RuntimeError("a bug")

        engine._scheduler.schedule = broken
        recorder = submit(engine, "r", _PROMPT)
        assert recorder.done.wait(10)
        later = submit(engine, "later", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)), max_tokens=12)
        assert later.done.wait(10)
        assert later.token_ids == healthy
        engine.stop(drain_seconds=1)
