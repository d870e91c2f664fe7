"""Any order of submits, aborts, faults and retirements keeps the books right, after every single step."""

from __future__ import annotations

import random

import pytest

from hilora.errors import HiloraError, QueueFull, RegistryUnavailable
from hilora.routing_plan import GateScope
from tests.builders.engine import InMemoryComponentSource, Recorder, make_engine, make_plan, run_until_done, submit
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_NUM_ADAPTERS = 8


def _random_plan(rng: random.Random):
    if rng.random() < 0.3:
        return None
    members = rng.sample(range(_NUM_ADAPTERS), rng.randint(1, 3))
    scope = rng.choice(list(GateScope))
    return make_plan(*((f"a{idx}", 3, rng.randint(0, 3), rng.random()) for idx in members), scope=scope)


@pytest.mark.parametrize("seed", range(6))
def test_books_are_right_after_every_step(seed) -> None:
    rng = random.Random(seed)
    loaded = load_tiny()
    shapes = linear_shapes(loaded.model)
    source = InMemoryComponentSource(
        {f"a{idx}": make_adapter(shapes, rank=3, seed=idx) for idx in range(_NUM_ADAPTERS)}
    )
    for rocs in source.adapters["a7"].modules.values():
        rocs.b_RO[:] = float("nan")
    source.faults["a6"] = RegistryUnavailable("away")
    # Room for about four adapters of eight, three slots, chunks of nine tokens: everything is scarce.
    engine = make_engine(
        loaded,
        source,
        max_num_seqs=3,
        max_num_batched_tokens=9,
        max_waiting=6,
        roc_pool_bytes=45_000,
    )
    recorders: dict[str, Recorder] = {}
    for step in range(250):
        action = rng.random()
        if action < 0.35:
            name = f"r{step}"
            prompt = [rng.randint(3, 95) for _ in range(rng.randint(1, 25))]
            sampling = {"max_tokens": rng.randint(1, 6), "temperature": rng.choice([0.0, 1.0]), "seed": step}
            try:
                recorders[name] = submit(engine, name, prompt, plan=_random_plan(rng), **sampling)
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
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)
    totals = stats.counters
    ended = totals.num_requests_finished + totals.num_requests_failed + totals.num_requests_aborted
    assert ended == len(recorders)
    errors = [
        recorder.events[-1].error
        for recorder in recorders.values()
        if not hasattr(recorder.events[-1], "finish_reason")
    ]
    assert all(isinstance(error, HiloraError) for error in errors)
    assert {error.code for error in errors} <= {"registry_unavailable", "non_finite_logits"}
    engine.stop(drain_seconds=0)
