"""The parts that keep an answer alive: the circuit, the budget of retries, the replay, who read a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilora.errors import Unavailable
from hilora.routing_plan import RocBudget, RoutingPlan
from services.router.answer import FinishReason, GenerationFinished, GenerationStarted, TextDelta
from services.router.infra.workers.affinity import PrefixAffinity, prefix_keys
from services.router.infra.workers.circuit import Circuit, CircuitState
from services.router.infra.workers.replay import Transcript, repeatable
from services.router.infra.workers.retry_budget import RetryBudget
from services.router.request import (
    ChatMessage,
    ChatPrompt,
    ChatRole,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
    WorkOrder,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def order(prompt=None, *, plan=None, **sampling) -> WorkOrder:
    request = GenerationRequest(
        request_id="r", prompt=prompt or TextPrompt(text="hello"), sampling=SamplingParams(**sampling)
    )
    return WorkOrder(request=request, plan=plan or RoutingPlan())


def circuit_of(clock, *, num_failures=0):
    """A circuit that saw so many requests fail."""
    circuit = Circuit(monotonic=clock, jitter=lambda: 0.0)
    for _ in range(num_failures):
        circuit.begin().failed()
    return circuit


class TestCircuit:
    def test_opens_after_three_and_probes_with_one(self):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=2)
        assert circuit.takes_requests
        circuit.begin().failed()
        assert (circuit.state, circuit.takes_requests) == (CircuitState.OPEN, False)
        clock.now = circuit.seconds_until_probe
        assert (circuit.state, circuit.takes_requests) == (CircuitState.HALF_OPEN, True)
        probe = circuit.begin()
        assert not circuit.takes_requests
        probe.succeeded()
        assert circuit.state is CircuitState.CLOSED

    def test_a_success_in_between_begins_the_count_anew(self):
        circuit = circuit_of(Clock(), num_failures=2)
        circuit.begin().succeeded()
        circuit.begin().failed()
        circuit.begin().failed()
        assert circuit.state is CircuitState.CLOSED

    def test_each_failed_probe_doubles_the_pause_up_to_a_limit(self):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=3)
        pauses = []
        for _ in range(8):
            pauses.append(circuit.seconds_until_probe)
            clock.now += circuit.seconds_until_probe
            circuit.begin().failed()
        assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30])

    def test_a_probe_whose_client_left_frees_the_place(self):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=3)
        clock.now = 60
        circuit.begin().abandoned()
        assert circuit.takes_requests

    @pytest.mark.parametrize("end", ["abandoned", "failed", "succeeded"])
    def test_a_request_of_before_does_not_speak_for_the_probe(self, end):
        clock = Clock()
        circuit = Circuit(monotonic=clock, jitter=lambda: 0.0)
        earlier = [circuit.begin() for _ in range(4)]
        for request in earlier[:3]:
            request.failed()
        clock.now = circuit.seconds_until_probe
        probe = circuit.begin()
        getattr(earlier[3], end)()
        assert (circuit.state, circuit.takes_requests) == (CircuitState.HALF_OPEN, False)
        probe.succeeded()
        assert circuit.state is CircuitState.CLOSED

    def test_those_who_are_lost_together_count_as_one_opening(self):
        clock = Clock()
        circuit = Circuit(monotonic=clock, jitter=lambda: 0.0)
        for request in [circuit.begin() for _ in range(20)]:
            request.failed()
        assert circuit.seconds_until_probe == 1.0

    def test_a_probe_that_answers_lets_others_in_and_the_next_failure_closes_the_door_again(self):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=3)
        clock.now = circuit.seconds_until_probe
        probe = circuit.begin()
        probe.answers()
        assert (circuit.state, circuit.takes_requests) == (CircuitState.CLOSED, True)
        circuit.begin().failed()
        assert (circuit.state, circuit.seconds_until_probe) == (CircuitState.OPEN, 2.0)
        # The probe was sent before that.
        probe.succeeded()
        assert circuit.state is CircuitState.OPEN

    def test_a_whole_answer_ends_the_probation(self):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=3)
        clock.now = circuit.seconds_until_probe
        probe = circuit.begin()
        probe.answers()
        probe.succeeded()
        for _ in range(2):
            circuit.begin().failed()
        assert circuit.state is CircuitState.CLOSED
        circuit.begin().failed()
        assert circuit.seconds_until_probe == 1.0

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["begin", "wait", "answers", "succeeded", "failed", "abandoned"]), st.integers(0, 9)
            )
        )
    )
    def test_while_half_open_never_more_than_one_request_is_out(self, steps):
        clock = Clock()
        circuit = circuit_of(clock, num_failures=3)
        out = []
        for step, which in steps:
            if step == "wait":
                clock.now += which
            elif step == "begin":
                if circuit.takes_requests:
                    out.append((circuit.begin(), circuit.state is CircuitState.HALF_OPEN))
            elif out:
                request, _ = out[which % len(out)]
                getattr(request, step)()
                if step != "answers":
                    out = [other for other in out if other[0] is not request]
            if circuit.state is CircuitState.HALF_OPEN:
                assert sum(is_probe and r.num_openings == circuit._num_openings for r, is_probe in out) <= 1


class TestRetryBudget:
    @given(st.lists(st.tuples(st.booleans(), st.floats(0, 2)), max_size=200))
    def test_never_more_than_a_fifth_and_the_reserve(self, steps):
        clock = Clock()
        budget = RetryBudget(monotonic=clock)
        num_requests = num_retries = 0
        for is_request, pause in steps:
            clock.now += pause
            if is_request:
                budget.request()
                num_requests += 1
            else:
                num_retries += budget.take()
            assert num_retries <= 10 + clock.now + 0.2 * num_requests + 1e-6

    def test_an_outage_of_everything_is_retried_by_a_fifth(self):
        budget = RetryBudget(monotonic=lambda: 0.0)
        retries = 0
        for _ in range(1000):
            budget.request()
            retries += budget.take()
        assert retries == pytest.approx(210, abs=1)


words = st.lists(st.text(max_size=3), min_size=1, max_size=12)


def deltas(tokens, cuts) -> list[TextDelta]:
    """An answer of one token a word, in pieces of some lengths."""
    pieces, start = [], 0
    for length in [*cuts, len(tokens)]:
        piece = tokens[start : start + length]
        if piece:
            ids = tuple(range(start, start + len(piece)))
            pieces.append(TextDelta(text="".join(piece), token_ids=ids))
        start += length
    return pieces


def end(choice_idx=0) -> GenerationFinished:
    return GenerationFinished(
        finish_reason=FinishReason.STOP,
        num_prompt_tokens=1,
        num_completion_tokens=1,
        budgets_used=(),
        ttft_seconds=0,
        e2e_latency_seconds=0,
        choice_idx=choice_idx,
    )


class TestTranscript:
    @given(words, st.lists(st.integers(1, 4), max_size=6), st.lists(st.integers(1, 4), max_size=6), st.integers(0, 12))
    def test_however_it_is_cut_and_wherever_it_breaks_every_token_comes_once(self, tokens, first, second, broken_at):
        transcript = Transcript()
        out = []
        stream = [GenerationStarted(num_prompt_tokens=1), *deltas(tokens, first)]
        out += [transcript.new_part(event) for event in stream[:broken_at]]
        transcript.begin_again()
        out += [
            transcript.new_part(event)
            for event in [GenerationStarted(num_prompt_tokens=1), *deltas(tokens, second), end()]
        ]
        told = [event for event in out if event is not None]
        texts = [event for event in told if isinstance(event, TextDelta)]
        assert "".join(event.text for event in texts) == "".join(tokens)
        assert [token for event in texts for token in event.token_ids] == list(range(len(tokens)))
        assert [type(told[0]), type(told[-1])] == [GenerationStarted, GenerationFinished]
        assert sum(isinstance(event, GenerationStarted) for event in told) == 1

    @pytest.mark.parametrize(
        "other",
        [
            [TextDelta(text="ax", token_ids=(1, 2))],
            [TextDelta(text="ab", token_ids=(1, 3))],
            [TextDelta(text="a", token_ids=(1,)), end()],
        ],
    )
    def test_another_answer_is_an_error_and_not_a_mixture(self, other):
        transcript = Transcript()
        transcript.new_part(TextDelta(text="ab", token_ids=(1, 2)))
        transcript.begin_again()
        with pytest.raises(Unavailable) as raised:
            for event in other:
                transcript.new_part(event)
        assert raised.value.code == "worker_lost"

    def test_a_choice_that_ended_before_ends_once(self):
        transcript = Transcript()
        assert transcript.new_part(end(0)) is not None
        transcript.begin_again()
        assert [transcript.new_part(end(0)), transcript.new_part(end(1))] == [None, end(1)]


class TestRepeatable:
    def test_a_draw_gets_a_seed_and_keeps_its_own(self):
        assert repeatable(order()).request.sampling.seed is not None
        assert repeatable(order(seed=3)).request.sampling.seed == 3
        assert repeatable(order(temperature=0)).request.sampling.seed is None


class TestAffinity:
    def test_the_next_turn_of_a_conversation_is_known(self):
        turns = tuple(ChatMessage(role=ChatRole.USER, content=str(number)) for number in range(4))
        affinity = PrefixAffinity()
        affinity.remember(prefix_keys(order(ChatPrompt(messages=turns[:2]))), "w")
        keys = prefix_keys(order(ChatPrompt(messages=turns)))
        assert affinity.shares(keys) == {"w": 0.5}
        affinity.forget("w")
        assert affinity.shares(keys) == {}

    def test_another_plan_shares_nothing(self):
        budget = RocBudget(adapter_id="a", adapter_name="a", lora_rank=8, num_rocs=1)
        affinity = PrefixAffinity()
        affinity.remember(prefix_keys(order()), "w")
        assert affinity.shares(prefix_keys(order(plan=RoutingPlan(budgets=(budget,))))) == {}

    def test_it_stays_bounded(self):
        affinity = PrefixAffinity(capacity=6)
        sizes = set()
        for number in range(50):
            affinity.remember(prefix_keys(order(TextPrompt(text=str(number)))), "w")
            sizes.add(len(affinity))
        assert max(sizes) == 6

    def test_what_is_used_outlives_what_is_not(self):
        affinity = PrefixAffinity(capacity=6)
        used, idle = prefix_keys(order(TextPrompt(text="used"))), prefix_keys(order(TextPrompt(text="idle")))
        affinity.remember((*used, *idle), "w")
        for number in range(50):
            affinity.remember(prefix_keys(order(TextPrompt(text=str(number)))), "other")
            assert affinity.shares(used) == {"w": 1.0}
        assert affinity.shares(idle) == {}

    def test_a_worker_that_took_a_prompt_over_is_the_one(self):
        affinity = PrefixAffinity(capacity=2)
        keys = prefix_keys(order())
        for address in ("first", "second", "third"):
            affinity.remember(keys, address)
            affinity.remember(prefix_keys(order(TextPrompt(text=address))), "other")
        assert affinity.shares(keys) == {"third": 1.0}
        affinity.forget("third")
        assert affinity.shares(keys) == {}
