"""Whose fault it is when a step fails."""

from __future__ import annotations

import numpy as np
import pytest

from hilora.errors import GenerationFailed, HiloraError, Unavailable
from services.worker.engine.execution.failures import as_failure
from services.worker.engine.sampling.sampling_params import SamplingParams
from services.worker.engine.scheduling.request import EngineRequest
from tests.builders.engine import Recorder, make_engine, run_until_done, submit
from tests.builders.models import VOCAB_SIZE, load_tiny

_PROMPT = [10, 20, 30, 40]


class FaultyGrammar:
    """Allows everything, until the call that is named for the n-th time raises what no grammar should."""

    is_accepting = False
    is_complete = False

    def __init__(self, call: str, num_good: int) -> None:
        self._left = {"allowed_tokens": 10**6, "accept": 10**6, call: num_good}

    def _count(self, call: str) -> None:
        self._left[call] -= 1
        if self._left[call] < 0:
            raise RuntimeError("a bug of the grammar library")

    def allowed_tokens(self):
        self._count("allowed_tokens")
        return np.ones(VOCAB_SIZE, dtype=bool)

    def accept(self, token_id: int) -> None:
        self._count("accept")


def _submit_faulty(engine, grammar) -> Recorder:
    recorder = Recorder()
    params = SamplingParams(max_tokens=20, temperature=0.0)
    request = EngineRequest(request_id="faulty", prompt_token_ids=(5, 6), sampling=params, grammar=grammar)
    engine.submit(request, recorder)
    return recorder


@pytest.mark.parametrize("call", ["allowed_tokens", "accept"])
@pytest.mark.parametrize("num_good", [0, 3])
def test_rules_that_break_end_their_request_alone(call, num_good) -> None:
    def run(*, is_beside: bool) -> list:
        engine = make_engine(load_tiny())
        greedy = submit(engine, "greedy", _PROMPT, max_tokens=12)
        faulty = _submit_faulty(engine, FaultyGrammar(call, num_good)) if is_beside else None
        penalised = submit(engine, "penalised", _PROMPT, max_tokens=12, frequency_penalty=1.5)
        run_until_done(engine, greedy, penalised)
        if faulty is not None:
            assert isinstance(faulty.error, GenerationFailed)
            assert len(faulty.token_ids) <= num_good
        engine.check_integrity()
        return [greedy.token_ids, penalised.token_ids]

    assert run(is_beside=True) == run(is_beside=False)


def test_a_batch_too_large_for_memory_is_run_request_by_request() -> None:
    engine = make_engine(load_tiny())
    execute, sizes = engine._runner.execute, []

    def cramped(batch):
        sizes.append(len(batch.sampling))
        if len(batch.sampling) > 1:
            raise MemoryError
        return execute(batch)

    engine._runner.execute = cramped
    recorders = [submit(engine, f"r{idx}", _PROMPT, max_tokens=3) for idx in range(3)]
    run_until_done(engine, *recorders)
    assert [recorder.finished.num_completion_tokens for recorder in recorders] == [3, 3, 3]
    assert sizes == [3, 1, 1, 1] * 3
    assert engine.stats().counters.num_steps == 3


class TestFailures:
    def test_our_own_errors_pass(self) -> None:
        error = HiloraError("ours")
        assert as_failure(error) is error

    def test_of_others_the_kind_alone_is_told(self) -> None:
        failure = as_failure(ValueError("a secret"))
        assert isinstance(failure, GenerationFailed)
        assert "ValueError" in str(failure) and "secret" not in str(failure)


def test_an_error_that_its_caller_keeps_keeps_nothing_of_the_step() -> None:
    engine = make_engine(load_tiny())

    def failing(batch):
        try:
            raise RuntimeError("device lost")
        except RuntimeError as error:
            raise Unavailable("The device is lost.") from error

    engine._runner.execute = failing
    faulty = submit(engine, "r", _PROMPT)
    run_until_done(engine, faulty)
    assert faulty.error.__traceback__ is None
    assert isinstance(faulty.error.__cause__, RuntimeError)
    assert faulty.error.__cause__.__traceback__ is None
