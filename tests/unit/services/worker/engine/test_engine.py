"""What the engine promises a caller: events, ends and refusals."""

from __future__ import annotations

import threading

import pytest
import torch

from hilora.adapter import RocBasis
from hilora.errors import (
    Conflict,
    InvalidInput,
    QueueFull,
    RocPoolFull,
    Unavailable,
)
from services.worker.engine.output.events import FinishReason, Started, TextDelta
from services.worker.lora.pool.roc_pool import RocKey
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


class TestEnds:
    def test_an_abort_does_not_reach_the_next_request_of_the_same_id(self, engine) -> None:
        first = submit(engine, "r", _PROMPT, max_tokens=1)
        engine._take_commands()
        engine.abort("r")
        stale = engine._aborts.copy()
        engine._aborts.clear()
        run_until_done(engine, first)
        second = submit(engine, "r", _PROMPT)
        engine._aborts.extend(stale)
        run_until_done(engine, second)
        assert second.finished.finish_reason is FinishReason.LENGTH

    def test_a_device_that_cannot_be_cleared_keeps_nobody_waiting(self, source, monkeypatch) -> None:
        engine = make_engine(load_tiny(), source)

        def broken(*_args, **_kwargs):
            raise RuntimeError("device lost")

        monkeypatch.setattr(engine._runner, "execute", broken)
        monkeypatch.setattr(engine._runner.kv_cache, "free", broken)
        recorders = [submit(engine, name, _PROMPT) for name in "ab"]
        engine.run_step()
        assert [recorder.error.code for recorder in recorders] == ["generation_failed"] * 2


class TestEvents:
    def test_started_then_deltas_then_one_end(self, engine) -> None:
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0), ("a1", 4, 0, 0.5)))
        run_until_done(engine, recorder)
        assert recorder.events[0] == Started(num_prompt_tokens=4)
        assert all(isinstance(event, TextDelta) for event in recorder.events[1:-1])
        finished = recorder.finished
        assert finished.finish_reason is FinishReason.LENGTH
        assert finished.num_completion_tokens == len(recorder.token_ids) == 8
        assert [budget.adapter_id for budget in finished.budgets_used] == ["a0"]
        assert 0 < finished.ttft_seconds <= finished.e2e_latency_seconds
        assert _is_at_rest(engine)

    def test_text_equals_decoding_all_tokens(self, engine) -> None:
        recorder = submit(engine, "r", _PROMPT, max_tokens=30)
        run_until_done(engine, recorder)
        assert recorder.text == load_tiny().tokenizer.decode(recorder.token_ids)

    def test_the_end_of_sequence_token_ends_the_answer_and_has_no_text(self, engine) -> None:
        engine._runner.execute = lambda batch: torch.eye(96)[torch.ones(len(batch.sampling), dtype=torch.int64)]
        stopped = submit(engine, "stopped", _PROMPT, ignore_eos=False)
        ignoring = submit(engine, "ignoring", _PROMPT, max_tokens=3)
        run_until_done(engine, stopped, ignoring)
        assert (stopped.finished.finish_reason, stopped.token_ids, stopped.text) == (FinishReason.STOP, [1], "")
        assert (ignoring.finished.finish_reason, ignoring.token_ids) == (FinishReason.LENGTH, [1, 1, 1])

    def test_a_stop_text_ends_the_answer_before_it(self, engine) -> None:
        free = submit(engine, "free", _PROMPT, max_tokens=20)
        run_until_done(engine, free)
        stop = free.text[5:8]
        recorder = submit(engine, "r", _PROMPT, max_tokens=20, stop=(stop,))
        run_until_done(engine, recorder)
        assert recorder.finished.finish_reason is FinishReason.STOP
        assert recorder.text == free.text[: free.text.index(stop)]

    def test_a_full_context_ends_the_answer(self) -> None:
        engine = make_engine(load_tiny(), max_model_len=10)
        recorder = submit(engine, "r", _PROMPT, max_tokens=100)
        run_until_done(engine, recorder)
        assert recorder.finished.finish_reason is FinishReason.LENGTH
        assert recorder.finished.num_completion_tokens == 6


class TestRefusals:
    @pytest.mark.parametrize(
        ("prompt", "code"),
        [
            ([], "empty_prompt"),
            ([5] * 96, "prompt_too_long"),
            ([5, 96], "invalid_token_id"),
            ([-1], "invalid_token_id"),
        ],
    )
    def test_unusable_prompts(self, engine, prompt, code) -> None:
        with pytest.raises(InvalidInput) as caught:
            submit(engine, "r", prompt)
        assert caught.value.code == code
        assert _is_at_rest(engine)

    def test_the_longest_prompt_that_fits(self, engine) -> None:
        recorder = submit(engine, "r", [5] * 95)
        run_until_done(engine, recorder)
        assert recorder.finished.num_completion_tokens == 1

    def test_an_id_that_is_in_flight(self, engine) -> None:
        recorder = submit(engine, "r", _PROMPT)
        with pytest.raises(Conflict) as caught:
            submit(engine, "r", _PROMPT)
        assert caught.value.code == "duplicate_request_id"
        run_until_done(engine, recorder)
        run_until_done(engine, submit(engine, "r", _PROMPT))

    def test_one_more_than_may_wait(self) -> None:
        engine = make_engine(load_tiny(), max_waiting=2)
        recorders = [submit(engine, f"r{idx}", _PROMPT) for idx in range(2)]
        with pytest.raises(QueueFull) as caught:
            submit(engine, "more", _PROMPT)
        assert caught.value.retry_after_seconds > 0
        run_until_done(engine, *recorders)
        run_until_done(engine, submit(engine, "more", _PROMPT))

    def test_a_plan_that_no_empty_pool_could_hold(self, source) -> None:
        engine = make_engine(load_tiny(), source, roc_pool_bytes=30_000)
        plan = make_plan(*((f"a{idx}", 4, 1, 1.0) for idx in range(4)))
        recorder = submit(engine, "r", _PROMPT, plan=plan)
        run_until_done(engine, recorder)
        assert isinstance(recorder.error, RocPoolFull) and recorder.error.code == "plan_exceeds_roc_pool"


class TestAbort:
    def test_in_the_inbox(self, engine) -> None:
        recorder = submit(engine, "r", _PROMPT)
        assert engine.abort("r")
        run_until_done(engine, recorder)
        assert recorder.finished.finish_reason is FinishReason.ABORT
        assert recorder.finished.num_completion_tokens == 0

    def test_while_its_components_are_fetched(self, engine, source) -> None:
        source.gate.clear()
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)))
        engine.run_step()
        engine.abort("r")
        engine.run_step()
        assert recorder.finished.finish_reason is FinishReason.ABORT
        assert recorder.finished.budgets_used == ()
        source.gate.set()
        run_until_done(engine, submit(engine, "s", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0))))

    @pytest.mark.parametrize("num_tokens", [40, 4])
    def test_while_it_reads_and_while_it_writes(self, source, num_tokens) -> None:
        engine = make_engine(load_tiny(), source, max_num_batched_tokens=16)
        recorder = submit(engine, "r", [9] * num_tokens, plan=make_plan(("a0", 4, 2, 1.0)))
        while not recorder.events:
            engine.run_step()
        engine.run_step()
        engine.abort("r")
        engine.run_step()
        assert recorder.finished.finish_reason is FinishReason.ABORT
        assert recorder.num_terminal == 1
        assert engine._runner.pool.num_references(RocKey("a0", RocBasis.TRAINED)) == 0
        assert _is_at_rest(engine)

    def test_of_what_is_unknown_or_over(self, engine) -> None:
        assert not engine.abort("never")
        recorder = submit(engine, "r", _PROMPT)
        run_until_done(engine, recorder)
        assert not engine.abort("r")


class TestColdAdapters:
    def test_a_slow_fetch_delays_only_the_request_that_needs_it(self, engine, source) -> None:
        warm = submit(engine, "w", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)))
        run_until_done(engine, warm)
        source.gate.clear()
        cold = submit(engine, "cold", _PROMPT, plan=make_plan(("a1", 4, 2, 1.0)))
        others = [submit(engine, f"o{idx}", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0))) for idx in range(3)]
        run_until_done(engine, *others)
        assert cold.events == []
        source.gate.set()
        run_until_done(engine, cold)

    def test_requests_take_turns_in_a_pool_too_small_for_both(self, source) -> None:
        engine = make_engine(load_tiny(), source, roc_pool_bytes=2 * _adapter_bytes(source))
        plans = [make_plan(("a0", 4, 2, 1.0), ("a1", 4, 2, 1.0)), make_plan(("a2", 4, 2, 1.0), ("a3", 4, 2, 1.0))]
        recorders = [submit(engine, f"r{idx}", _PROMPT, plan=plans[idx % 2]) for idx in range(6)]
        run_until_done(engine, *recorders)
        assert {recorder.finished.num_completion_tokens for recorder in recorders} == {8}

    def test_retiring_frees_memory_at_once_or_with_the_last_request(self, engine, source) -> None:
        plan = make_plan(("a0", 4, 2, 1.0))
        run_until_done(engine, submit(engine, "r", _PROMPT, plan=plan))
        assert engine.retire("a0").now == _adapter_bytes(source)
        running = submit(engine, "s", _PROMPT, plan=plan)
        while not running.events:
            engine.run_step()
        assert engine.retire("a0") == (0, _adapter_bytes(source))
        run_until_done(engine, running)
        assert running.finished.num_completion_tokens == 8
        assert engine.stats().roc_pool_used_bytes == 0


class TestThread:
    def test_many_threads_submit_and_everybody_gets_an_end(self, source) -> None:
        engine = make_engine(load_tiny(), source, max_num_seqs=4)
        engine.start()
        recorders: dict[str, Recorder] = {}

        def client(number: int) -> None:
            for idx in range(4):
                name = f"c{number}-{idx}"
                recorders[name] = submit(engine, name, _PROMPT, plan=make_plan((f"a{idx}", 4, 2, 1.0)))
                if idx == 2:
                    engine.abort(name)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for recorder in recorders.values():
            assert recorder.done.wait(20)
        engine.stop(drain_seconds=5)
        assert {recorder.num_terminal for recorder in recorders.values()} == {1}
        engine.check_integrity()

    def test_a_drain_waits_for_what_runs_and_refuses_what_comes(self, source) -> None:
        engine = make_engine(load_tiny(), source)
        engine.start()
        recorder = submit(engine, "r", _PROMPT, max_tokens=60)
        stopping = threading.Thread(target=engine.stop, kwargs={"drain_seconds": 20})
        stopping.start()
        assert recorder.done.wait(20)
        stopping.join(20)
        assert recorder.finished.num_completion_tokens == 60
        with pytest.raises(Unavailable) as caught:
            submit(engine, "late", _PROMPT)
        assert caught.value.code == "worker_draining"

    def test_a_drain_that_runs_out_aborts(self, source) -> None:
        engine = make_engine(load_tiny(), source)
        source.gate.clear()
        engine.start()
        recorder = submit(engine, "r", _PROMPT, plan=make_plan(("a0", 4, 2, 1.0)))
        stopping = threading.Thread(target=engine.stop, kwargs={"drain_seconds": 0.05})
        stopping.start()
        assert recorder.done.wait(20)
        source.gate.set()
        stopping.join(20)
        assert recorder.finished.finish_reason is FinishReason.ABORT
        engine.stop(drain_seconds=0)


def _adapter_bytes(source: InMemoryComponentSource) -> int:
    """Bytes of one adapter in the pool: its vectors, and a norm for each `b`, in float32."""
    modules = source.adapters["a0"].modules.values()
    return sum(4 * rocs.num_rocs * (rocs.a_RD.shape[1] + rocs.b_RO.shape[1] + 1) for rocs in modules)
