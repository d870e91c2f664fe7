"""A request that had to give its memory back says the same as one that never did."""

from __future__ import annotations

import pytest
import torch

from services.worker.engine.engine import Engine
from services.worker.engine.output.events import Started
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PAGE_BYTES = 8192
"""16 positions of the tiny model in float64."""
_LENGTHS = (3, 17, 30, 24)
_SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0},
    "penalised": {"temperature": 0.8, "frequency_penalty": 0.7, "repetition_penalty": 1.3, "logprobs": 2},
}


def _engine(num_pages: int | None = None, **config) -> Engine:
    loaded = load_tiny(dtype=torch.float64)
    shapes = linear_shapes(loaded.model)
    source = InMemoryComponentSource({f"a{idx}": make_adapter(shapes, seed=idx) for idx in range(3)})
    num_bytes = None if num_pages is None else (num_pages + 1) * _PAGE_BYTES
    return make_engine(loaded, source, kv_layout="pages", kv_cache_bytes=num_bytes, **config)


def _submit_all(engine: Engine, sampling: dict, *, max_tokens: int = 40) -> list[Recorder]:
    plans = [make_plan(("a0", 4, 2, 1.0)), None, make_plan(("a1", 4, 2, 0.6), ("a2", 4, 1, 0.4)), None]
    return [
        submit(
            engine,
            f"r{idx}",
            torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(idx)).tolist(),
            plan=plan,
            max_tokens=max_tokens,
            seed=idx,
            **sampling,
        )
        for idx, (length, plan) in enumerate(zip(_LENGTHS, plans, strict=True))
    ]


def _run(engine: Engine, *recorders: Recorder) -> None:
    for _ in range(1000):
        if all(recorder.done.is_set() for recorder in recorders):
            return
        engine.run_step()
        engine.check_integrity()
    raise AssertionError("requests did not end")


def _said(recorder: Recorder) -> tuple:
    return recorder.text, recorder.token_ids, recorder.finished.finish_reason


@pytest.mark.parametrize("sampling", _SAMPLINGS.values(), ids=_SAMPLINGS)
@pytest.mark.parametrize("enable_prefix_cache", [False, True], ids=["", "prefix cache"])
def test_memory_that_runs_out_changes_no_answer(sampling, enable_prefix_cache) -> None:
    roomy = _engine()
    expected = _submit_all(roomy, sampling)
    _run(roomy, *expected)
    assert roomy.stats().counters.num_preemptions == 0
    # Eleven pages; together the four requests come to sixteen.
    tight = _engine(11, enable_prefix_cache=enable_prefix_cache)
    found = _submit_all(tight, sampling)
    _run(tight, *found)
    assert tight.stats().counters.num_preemptions > 0
    assert [_said(recorder) for recorder in found] == [_said(recorder) for recorder in expected]
    for recorder in found:
        assert sum(isinstance(event, Started) for event in recorder.events) == 1
        assert recorder.finished.num_completion_tokens == 40
    stats = tight.stats()
    assert stats.counters.num_prompt_tokens == sum(_LENGTHS)
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)


@pytest.mark.parametrize("layout", ["slots", "pages"])
@pytest.mark.parametrize("sampling", _SAMPLINGS.values(), ids=_SAMPLINGS)
def test_an_urgent_request_interrupts_and_changes_no_answer(layout, sampling) -> None:
    def run(*, is_interrupted: bool) -> Recorder:
        engine = make_engine(load_tiny(dtype=torch.float64), max_num_seqs=1, kv_layout=layout)
        recorder = submit(engine, "ordinary", [9, 8, 7, 6] * 6, max_tokens=20, seed=3, **sampling)
        for _ in range(12):
            engine.run_step()
        if is_interrupted:
            urgent = submit(engine, "urgent", [5, 6], priority=-1)
            engine.run_step()
            assert urgent.events
            _run(engine, urgent)
            assert not recorder.done.is_set()
        _run(engine, recorder)
        assert engine.stats().counters.num_preemptions == int(is_interrupted)
        return recorder

    assert _said(run(is_interrupted=True)) == _said(run(is_interrupted=False))


def test_a_request_interrupted_while_its_prompt_is_read() -> None:
    def run(*, is_interrupted: bool) -> Recorder:
        engine = make_engine(load_tiny(dtype=torch.float64), max_num_seqs=1, max_num_batched_tokens=8)
        recorder = submit(engine, "ordinary", list(range(3, 43)), prompt_logprobs=1)
        for _ in range(3):
            engine.run_step()
        if is_interrupted:
            _run(engine, submit(engine, "urgent", [5, 6], priority=-1))
        _run(engine, recorder)
        return recorder

    interrupted, left_alone = run(is_interrupted=True), run(is_interrupted=False)
    assert _said(interrupted) == _said(left_alone)
    told, expected = (
        [one.chosen.logprob for event in recorder.events[1:-1] for one in event.prompt_logprobs]
        for recorder in (interrupted, left_alone)
    )
    assert len(told) == 39
    assert told == pytest.approx(expected)


def test_a_preempted_request_can_be_aborted() -> None:
    engine = make_engine(load_tiny(), max_num_seqs=1)
    ordinary = submit(engine, "ordinary", [5] * 5, max_tokens=60)
    for _ in range(4):
        engine.run_step()
    urgent = submit(engine, "urgent", [5] * 5, priority=-1, max_tokens=60)
    engine.run_step()
    engine.abort("ordinary")
    engine.run_step()
    engine.check_integrity()
    assert ordinary.finished.finish_reason == "abort"
    assert ordinary.finished.num_completion_tokens == len(ordinary.token_ids) > 0
    run_until_done(engine, urgent)
