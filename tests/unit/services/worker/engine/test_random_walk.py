"""Any order of submits, aborts, preemptions, faults, timeouts and retirements keeps the books right, step by step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from hilora.errors import HiloraError, QueueFull, RegistryUnavailable
from hilora.routing_plan import GateScope
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import Failed, Started
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_NUM_ADAPTERS = 8
_PAGE_BYTES = 4096
"""16 positions of the tiny model in float32."""
_LAYOUTS = {
    "slots": {},
    "kept slots": {"enable_prefix_cache": True},
    # Longest requests take two pages; three of them do not fit.
    "pages": {"kv_layout": "pages", "kv_cache_bytes": 6 * _PAGE_BYTES, "max_model_len": 40},
    "kept pages": {
        "kv_layout": "pages",
        "kv_cache_bytes": 6 * _PAGE_BYTES,
        "max_model_len": 40,
        "enable_prefix_cache": True,
        "max_preemptions": 1,
    },
    "impatient": {"max_queue_seconds": 0.05, "kv_layout": "pages", "kv_cache_bytes": 7 * _PAGE_BYTES},
}
_CODES = {"registry_unavailable", "non_finite_logits", "generation_failed"}


def _random_plan(rng: random.Random):
    if rng.random() < 0.3:
        return None
    members = rng.sample(range(_NUM_ADAPTERS), rng.randint(1, 3))
    scope = rng.choice(list(GateScope))
    return make_plan(*((f"a{idx}", 3, rng.randint(0, 3), rng.random()) for idx in members), scope=scope)


def _faulty_engine(rng: random.Random, **config) -> Engine:
    loaded = load_tiny()
    shapes = linear_shapes(loaded.model)
    source = InMemoryComponentSource(
        {f"a{idx}": make_adapter(shapes, rank=3, seed=idx) for idx in range(_NUM_ADAPTERS)}
    )
    for rocs in source.adapters["a7"].modules.values():
        rocs.b_RO[:] = float("nan")
    source.faults["a6"] = RegistryUnavailable("away")
    # Room for about four adapters of eight, three slots, chunks of nine tokens: everything is scarce.
    limits = {
        "max_num_seqs": 3,
        "max_num_batched_tokens": 9,
        "max_waiting": 6,
        "roc_pool_bytes": 45_000,
        "max_model_len": 48,
    }
    engine = make_engine(loaded, source, **{**limits, **config})
    execute = engine._runner.execute

    def faulty(batch):
        if rng.random() < 0.03:
            raise RuntimeError("a kernel failed")
        return execute(batch)

    engine._runner.execute = faulty
    for name in ("allocate", "reserve"):
        setattr(engine._runner.kv_cache, name, _sometimes_failing(rng, getattr(engine._runner.kv_cache, name)))
    return engine


def _sometimes_failing(rng: random.Random, call: Callable[..., Any]) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        if rng.random() < 0.01:
            raise RuntimeError("the allocator failed")
        return call(*args, **kwargs)

    return failing


def _random_request(rng: random.Random, step: int) -> dict:
    # Few prompts, so that prefixes are shared.
    prompt = random.Random(rng.randint(0, 5))
    return {
        "prompt": [prompt.randint(3, 95) for _ in range(rng.randint(1, 25))],
        "plan": _random_plan(rng),
        "priority": rng.choice([0, 0, 0, -1, 2]),
        "max_tokens": rng.randint(1, 14),
        "temperature": rng.choice([0.0, 1.0]),
        "seed": step,
        "prompt_logprobs": rng.choice([None, None, None, 1]),
    }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("config", _LAYOUTS.values(), ids=_LAYOUTS)
def test_books_are_right_after_every_step(config, seed) -> None:
    rng = random.Random(seed)
    engine = _faulty_engine(rng, **config)
    recorders: dict[str, Recorder] = {}
    for step in range(250):
        action = rng.random()
        if action < 0.35:
            name = f"r{step}"
            request = _random_request(rng, step)
            try:
                recorders[name] = submit(engine, name, request.pop("prompt"), **request)
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
    _check_ends(engine, recorders)
    if "max_queue_seconds" not in config:
        # On a slow machine impatience leaves nobody who could be preempted.
        assert engine.stats().counters.num_preemptions > 0
    engine.stop(drain_seconds=0)


def _check_ends(engine: Engine, recorders: dict[str, Recorder]) -> None:
    assert {recorder.num_terminal for recorder in recorders.values()} == {1}
    for recorder in recorders.values():
        assert sum(isinstance(event, Started) for event in recorder.events) <= 1
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)
    totals = stats.counters
    ended = totals.num_requests_finished + totals.num_requests_failed + totals.num_requests_aborted
    assert ended == len(recorders)
    errors = [event.error for recorder in recorders.values() for event in recorder.events if isinstance(event, Failed)]
    assert all(isinstance(error, HiloraError) for error in errors)
    assert {error.code for error in errors} <= _CODES | ({"queue_timeout"} if totals.num_queue_timeouts else set())
