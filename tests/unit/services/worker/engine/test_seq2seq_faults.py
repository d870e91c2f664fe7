"""Encoder-decoder models: a fault ends its own request, and the books are right after every step."""

from __future__ import annotations

import random

import pytest

from hilora.errors import HiloraError, QueueFull, RegistryUnavailable
from services.worker.engine.output.events import FinishReason
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, make_adapter
from tests.builders.seq2seq import load_tiny_seq2seq, make_seq2seq

_SUFFIXES = (".q", ".v", ".wo")
_PROMPT = [10, 20, 30, 40]
_NUM_ADAPTERS = 6


@pytest.fixture
def source() -> InMemoryComponentSource:
    shapes = linear_shapes(make_seq2seq(), suffixes=_SUFFIXES)
    return InMemoryComponentSource({f"a{idx}": make_adapter(shapes, rank=3, seed=idx) for idx in range(_NUM_ADAPTERS)})


@pytest.fixture
def engine(source):
    engine = make_engine(load_tiny_seq2seq(), source)
    yield engine
    engine.check_integrity()
    engine.stop(drain_seconds=0)


@pytest.fixture
def healthy(source) -> list[int]:
    engine = make_engine(load_tiny_seq2seq(), source)
    recorder = submit(engine, "h", _PROMPT, plan=make_plan(("a0", 3, 2, 1.0)), max_tokens=12)
    run_until_done(engine, recorder)
    return recorder.token_ids


def _beside(engine, healthy: list[int], *faulty: Recorder) -> None:
    recorder = submit(engine, "h", _PROMPT, plan=make_plan(("a0", 3, 2, 1.0)), max_tokens=12)
    run_until_done(engine, recorder, *faulty)
    assert recorder.token_ids == healthy
    assert all(one.num_terminal == 1 for one in (recorder, *faulty))
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)


class TestFaults:
    def test_an_adapter_of_nans_leaves_a_clean_slot(self, engine, source, healthy) -> None:
        for rocs in source.adapters["a3"].modules.values():
            rocs.b_RO[1] = float("nan")
        faulty = submit(engine, "f", _PROMPT, plan=make_plan(("a3", 3, 3, 1.0)), max_tokens=12)
        _beside(engine, healthy, faulty)
        assert faulty.error.code == "non_finite_logits"
        _beside(engine, healthy)

    @pytest.mark.parametrize("part", ["encoder", "decoder"])
    @pytest.mark.parametrize("num_good_passes", [0, 2])
    def test_a_pass_that_breaks_half_way_is_run_again_one_by_one(self, engine, healthy, part, num_good_passes) -> None:
        """The second layer fails: the first one has written its keys and values by then."""
        loaded_part = getattr(engine._loaded.model, part)
        layer = loaded_part.block[1].layer[0]
        num_passes = 0

        def failing(module, args, kwargs):
            nonlocal num_passes
            owners = {active.request_id for active in current}
            if "f" in owners:
                num_passes += 1
                if num_passes > num_good_passes:
                    raise RuntimeError("device-side assert")

        layer.register_forward_pre_hook(failing, with_kwargs=True)
        current: tuple = ()
        execute = engine._runner.execute

        def noting(batch):
            nonlocal current
            current = batch.sampling
            return execute(batch)

        engine._runner.execute = noting
        faulty = submit(engine, "f", [77, 10, 30], max_tokens=12)
        _beside(engine, healthy, faulty)
        if part == "encoder" and num_good_passes:
            assert faulty.finished.finish_reason is FinishReason.LENGTH
        else:
            assert faulty.error.code == "generation_failed"

    def test_abort_at_any_moment(self, engine, healthy) -> None:
        for num_steps in range(6):
            faulty = submit(engine, "f", [7] * 60, plan=make_plan(("a1", 3, 1, 1.0)))
            other = submit(engine, "o", _PROMPT, plan=make_plan(("a0", 3, 2, 1.0)), max_tokens=12)
            for _ in range(num_steps):
                engine.run_step()
            assert engine.abort("f")
            run_until_done(engine, faulty, other)
            assert faulty.finished.finish_reason is FinishReason.ABORT
            assert other.token_ids == healthy
            engine.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_books_are_right_after_every_step(seed, source) -> None:
    rng = random.Random(seed)
    for rocs in source.adapters["a5"].modules.values():
        rocs.b_RO[:] = float("nan")
    source.faults["a4"] = RegistryUnavailable("away")
    engine = make_engine(
        load_tiny_seq2seq(), source, max_num_seqs=3, max_num_batched_tokens=9, max_waiting=6, roc_pool_bytes=80_000
    )
    recorders: dict[str, Recorder] = {}
    for step in range(200):
        action = rng.random()
        if action < 0.35:
            name = f"r{step}"
            prompt = [rng.randint(3, 95) for _ in range(rng.randint(1, 25))]
            members = rng.sample(range(_NUM_ADAPTERS), rng.randint(0, 3))
            plan = make_plan(*((f"a{idx}", 3, rng.randint(0, 3), rng.random()) for idx in members))
            sampling = {"max_tokens": rng.randint(1, 6), "temperature": rng.choice([0.0, 1.0]), "seed": step}
            try:
                recorders[name] = submit(engine, name, prompt, plan=plan, priority=rng.choice([0, 0, -1]), **sampling)
            except QueueFull:
                assert engine.stats().num_waiting >= 6
        elif action < 0.45 and recorders:
            engine.abort(rng.choice(list(recorders)))
        elif action < 0.5:
            engine.retire(f"a{rng.randrange(_NUM_ADAPTERS)}")
        engine.run_step()
        engine.check_integrity()
    run_until_done(engine, *recorders.values(), max_steps=3000)
    engine.check_integrity()
    assert {recorder.num_terminal for recorder in recorders.values()} == {1}
    errors = [one.events[-1].error for one in recorders.values() if not hasattr(one.events[-1], "finish_reason")]
    assert all(isinstance(error, HiloraError) for error in errors)
    assert {error.code for error in errors} <= {"registry_unavailable", "non_finite_logits"}
    engine.stop(drain_seconds=0)
