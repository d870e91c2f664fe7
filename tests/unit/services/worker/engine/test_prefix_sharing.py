"""Requests that begin alike share keys and values, if and only if everything that decides them is alike."""

from __future__ import annotations

import random

import pytest
import torch

from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from tests.builders.engine import InMemoryComponentSource, make_engine, make_plan, run_until_done, submit
from tests.builders.logits import LogitRecorder, assert_close
from tests.builders.models import linear_shapes, load_tiny, make_adapter

_PROMPT = [3 + (7 * idx) % 90 for idx in range(40)]
_PLAN = make_plan(("a0", 4, 2, 0.7), ("a1", 4, 1, 0.3))


@pytest.fixture(params=["slots", "pages"])
def engine(request) -> Engine:
    return _engine(kv_layout=request.param)


def _engine(**config) -> Engine:
    loaded = load_tiny(dtype=torch.float64)
    shapes = linear_shapes(loaded.model)
    adapters = {f"a{idx}": make_adapter(shapes, seed=idx) for idx in range(3)}
    adapters["nan"] = make_adapter(shapes, seed=9)
    for rocs in adapters["nan"].modules.values():
        rocs.b_RO[:] = float("nan")
    return make_engine(
        loaded, InMemoryComponentSource(adapters), **{"enable_prefix_cache": True, "max_num_seqs": 3, **config}
    )


def _serve(
    engine: Engine, name: str, prompt: list[int], plan: RoutingPlan = _PLAN, **sampling
) -> tuple[int, list[int]]:
    """Cached tokens and the answer."""
    recorder = submit(engine, name, prompt, plan=plan, **sampling)
    run_until_done(engine, recorder)
    engine.check_integrity()
    return recorder.finished.num_cached_tokens, recorder.token_ids


class TestOnePlan:
    def test_the_answer_and_its_logits_are_the_same(self, engine) -> None:
        recorder = LogitRecorder(engine)
        first, answer = _serve(engine, "first", _PROMPT)
        second, again = _serve(engine, "second", _PROMPT)
        assert first == 0
        assert second in {len(_PROMPT) - 1, 32}
        assert again == answer
        assert_close(recorder.of("second"), recorder.of("first"))

    def test_a_conversation_goes_on_where_it_was(self, engine) -> None:
        _, answer = _serve(engine, "turn", _PROMPT)
        num_cached, continued = _serve(engine, "next", [*_PROMPT, *answer, 5, 6])
        assert num_cached >= 32
        fresh, expected = _serve(_engine(), "alone", [*_PROMPT, *answer, 5, 6])
        assert fresh == 0
        assert continued == expected

    def test_requests_that_turn_off_keep_their_own_ways(self, engine) -> None:
        _serve(engine, "first", _PROMPT)
        prompts = {f"r{idx}": [*_PROMPT[: 20 + idx], 3 + idx, 4] for idx in range(6)}
        together = {name: submit(engine, name, prompt, plan=_PLAN) for name, prompt in prompts.items()}
        run_until_done(engine, *together.values())
        engine.check_integrity()
        assert sum(recorder.finished.num_cached_tokens for recorder in together.values()) >= 16 * 6
        for name, prompt in prompts.items():
            assert together[name].token_ids == _serve(_engine(), name, prompt)[1]


class TestDifferentPlans:
    def test_two_plans_with_one_prompt_never_share(self, engine) -> None:
        plans = {
            "plan": _PLAN,
            "base": RoutingPlan(),
            "other adapter": make_plan(("a0", 4, 2, 0.7), ("a2", 4, 1, 0.3)),
            "other budget": make_plan(("a0", 4, 3, 0.7), ("a1", 4, 1, 0.3)),
            "other weight": make_plan(("a0", 4, 2, 0.6), ("a1", 4, 1, 0.3)),
            "other gate": make_plan(("a0", 4, 2, 0.7), ("a1", 4, 1, 0.3), eta=0.5),
        }
        for name, plan in plans.items():
            num_cached, answer = _serve(engine, name, _PROMPT, plan)
            assert num_cached == 0, name
            assert answer == _serve(_engine(), name, _PROMPT, plan)[1]

    def test_plans_without_rocs_share_the_base(self, engine) -> None:
        _serve(engine, "base", _PROMPT, RoutingPlan())
        assert _serve(engine, "idle", _PROMPT, make_plan(("a0", 4, 0, 1.0)))[0] > 0

    def test_it_is_off_unless_asked_for(self) -> None:
        engine = _engine(enable_prefix_cache=False)
        assert [_serve(engine, name, _PROMPT)[0] for name in ("first", "second")] == [0, 0]


class TestEndsThatAreNoAnswers:
    def test_an_aborted_request_leaves_nothing(self, engine) -> None:
        _serve(engine, "resident", [7, 7])
        recorder = submit(engine, "gone", _PROMPT, plan=_PLAN, max_tokens=40)
        for _ in range(5):
            engine.run_step()
        assert recorder.token_ids
        engine.abort("gone")
        run_until_done(engine, recorder)
        assert _serve(engine, "next", _PROMPT)[0] == 0

    def test_a_request_that_is_not_finite_leaves_nothing(self, engine) -> None:
        plan = make_plan(("nan", 4, 2, 1.0))
        for name in ("first", "second"):
            recorder = submit(engine, name, _PROMPT, plan=plan)
            run_until_done(engine, recorder)
            assert recorder.error.code == "non_finite_logits"
            assert engine._runner.kv_cache.usage == 0
            engine.check_integrity()
        cache = engine._runner.kv_cache
        assert not any(cache.keys(idx).any() or cache.values(idx).any() for idx in range(cache.num_layers))

    def test_a_failed_step_leaves_nothing(self, engine, monkeypatch) -> None:
        def broken(batch):
            execute(batch)
            raise RuntimeError("the device is gone")

        execute = engine._runner.execute
        monkeypatch.setattr(engine._runner, "execute", broken)
        recorder = submit(engine, "first", _PROMPT)
        run_until_done(engine, recorder)
        assert recorder.error.code == "generation_failed"
        engine.check_integrity()
        monkeypatch.undo()
        assert _serve(engine, "second", _PROMPT)[0] == 0


class TestRetirement:
    def test_content_that_is_asked_for_again_is_right(self, engine) -> None:
        _, answer = _serve(engine, "first", _PROMPT)
        engine.retire("a0")
        engine.readmit("a0")
        num_cached, again = _serve(engine, "second", _PROMPT)
        assert num_cached > 0
        assert again == answer


# Four slots, or pages for two requests: prefixes are evicted all the time.
@pytest.mark.parametrize(("layout", "num_bytes"), [("slots", 200_000), ("pages", 66_000)])
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_requests_gives_the_answers_of_an_engine_that_keeps_nothing(layout, num_bytes, seed) -> None:
    rng = random.Random(seed)
    plans = [RoutingPlan(), _PLAN, make_plan(("a2", 4, 3, 1.0))]
    engine = _engine(kv_layout=layout, max_num_seqs=4, max_num_batched_tokens=16, kv_cache_bytes=num_bytes)
    plain = _engine(enable_prefix_cache=False, max_num_seqs=1, kv_layout="slots")
    for idx, plan in enumerate(plans):
        # Components on the device, so that no loader's speed decides what follows.
        _serve(engine, f"resident{idx}", [7], plan)
    recorders = {}
    asked = {}
    for idx in range(24):
        prompt = [*_PROMPT[: rng.randint(1, 40)], *(rng.randint(3, 5) for _ in range(rng.randint(0, 2)))]
        asked[f"r{idx}"] = (prompt, rng.choice(plans))
        recorders[f"r{idx}"] = submit(engine, f"r{idx}", prompt, plan=asked[f"r{idx}"][1], max_tokens=24)
        for _ in range(rng.randint(0, 14)):
            engine.run_step()
            engine.check_integrity()
    run_until_done(engine, *recorders.values())
    assert sum(recorder.finished.num_cached_tokens for recorder in recorders.values()) > 30
    assert (engine.stats().counters.num_preemptions > 0) == (layout == "pages")
    for name, (prompt, plan) in asked.items():
        assert recorders[name].token_ids == _serve(plain, name, prompt, plan, max_tokens=24)[1]
