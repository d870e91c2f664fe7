"""The policy alone: requests without tensors."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import QueueFull
from services.worker.engine.completion import Completion
from services.worker.engine.config import EngineConfig
from services.worker.engine.request import ActiveRequest, EngineRequest, RequestState
from services.worker.engine.sampler import RequestSampler
from services.worker.engine.sampling_params import SamplingParams
from services.worker.engine.scheduler import ScheduledStep, Scheduler
from services.worker.lora.residency import ResidencyTicket, TicketState
from tests.builders.models import ByteTokenizer

_ids = itertools.count()


def _config(**changes) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 3, "max_num_batched_tokens": 8, "max_waiting": 5, **changes})


def _active(num_tokens: int = 4, *, is_resident: bool = True) -> ActiveRequest:
    state = TicketState.READY if is_resident else TicketState.FETCHING
    prompt, params = (5,) * num_tokens, SamplingParams()
    return ActiveRequest(
        request=EngineRequest(request_id=f"r{next(_ids)}", prompt_token_ids=prompt, sampling=params),
        sink=lambda event: None,
        sampler=RequestSampler(params),
        completion=Completion(
            sampling=params,
            prompt_token_ids=prompt,
            decoder=ByteTokenizer(),
            eos_token_ids=frozenset({1}),
            max_model_len=96,
        ),
        ticket=ResidencyTicket(keys=(), state=state),
    )


def _play(step: ScheduledStep) -> None:
    """What the engine does with a step, without a model."""
    for work in (*step.decodes, *step.chunks):
        is_sampling = work.is_sampling
        work.active.num_computed_tokens += work.num_tokens
        if is_sampling:
            if work.active.state is RequestState.PREFILL:
                work.active.advance(RequestState.DECODE)
            work.active.completion.token_ids.append(7)


class TestAdmission:
    def test_first_come_first_served_up_to_the_slots(self) -> None:
        scheduler = Scheduler(_config(max_num_batched_tokens=100))
        requests = [_active() for _ in range(4)]
        for active in requests:
            scheduler.add(active)
        assert list(scheduler.schedule().admitted) == requests[:3]
        assert (scheduler.num_running, scheduler.num_waiting) == (3, 1)

    def test_a_request_whose_rocs_are_on_their_way_delays_nobody(self) -> None:
        scheduler = Scheduler(_config())
        cold, warm = _active(is_resident=False), _active()
        scheduler.add(cold)
        scheduler.add(warm)
        assert scheduler.schedule().admitted == (warm,)
        cold.ticket.state = TicketState.READY
        assert scheduler.schedule().admitted == (cold,)

    def test_a_request_without_a_ticket_waits(self) -> None:
        scheduler = Scheduler(_config())
        active = _active()
        active.ticket = None
        scheduler.add(active)
        assert scheduler.schedule().num_tokens == 0

    def test_a_freed_slot_goes_to_the_next(self) -> None:
        scheduler = Scheduler(_config(max_num_seqs=1))
        first, second = _active(), _active()
        scheduler.add(first)
        scheduler.add(second)
        _play(scheduler.schedule())
        assert scheduler.schedule().admitted == ()
        scheduler.remove(first)
        assert scheduler.schedule().admitted == (second,)

    def test_the_queue_has_a_limit(self) -> None:
        scheduler = Scheduler(_config(max_waiting=1))
        scheduler.add(_active())
        with pytest.raises(QueueFull) as caught:
            scheduler.add(_active())
        assert caught.value.retry_after_seconds > 0


class TestChunkedPrefill:
    def test_a_long_prompt_takes_several_steps(self) -> None:
        scheduler = Scheduler(_config())
        active = _active(20)
        scheduler.add(active)
        sizes = []
        while active.state is not RequestState.DECODE:
            step = scheduler.schedule()
            sizes.append([work.num_tokens for work in step.chunks])
            _play(step)
        assert sizes == [[8], [8], [4]]

    def test_decodes_come_first_and_prompts_get_the_rest(self) -> None:
        scheduler = Scheduler(_config())
        first, second = _active(4), _active(20)
        scheduler.add(first)
        _play(scheduler.schedule())
        scheduler.add(second)
        step = scheduler.schedule()
        assert [work.active for work in step.decodes] == [first]
        assert [(work.active, work.num_tokens) for work in step.chunks] == [(second, 7)]

    def test_a_prompt_begun_earlier_goes_on_first(self) -> None:
        scheduler = Scheduler(_config())
        first, second = _active(10), _active(10)
        scheduler.add(first)
        scheduler.add(second)
        _play(scheduler.schedule())
        step = scheduler.schedule()
        assert [(work.active, work.num_tokens) for work in step.chunks] == [(first, 2), (second, 6)]


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
        max_num_seqs=st.integers(1, 4),
        extra_budget=st.integers(0, 10),
        num_answers=st.integers(1, 4),
    )
    def test_every_request_ends_and_no_limit_is_broken(self, lengths, max_num_seqs, extra_budget, num_answers) -> None:
        config = _config(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_seqs + extra_budget, max_waiting=len(lengths)
        )
        scheduler = Scheduler(config)
        requests = [_active(length) for length in lengths]
        for active in requests:
            scheduler.add(active)
        finished = []
        for _ in range(sum(lengths) + len(lengths) * (num_answers + 1)):
            step = scheduler.schedule()
            assert step.num_tokens <= config.max_num_batched_tokens
            assert scheduler.num_running <= max_num_seqs
            works = [*step.decodes, *step.chunks]
            assert len({work.active.request_id for work in works}) == len(works)
            running_decodes = [one for one in scheduler.requests() if one.state is RequestState.DECODE]
            assert len(step.decodes) == len(running_decodes)
            _play(step)
            for active in list(scheduler.requests()):
                if len(active.completion.token_ids) == num_answers:
                    active.advance(RequestState.FINISHED)
                    scheduler.remove(active)
                    finished.append(active)
        assert sorted(active.request_id for active in finished) == sorted(active.request_id for active in requests)


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_num_seqs", 0),
            ("max_model_len", 1),
            ("max_num_batched_tokens", 2),
            ("max_waiting", 0),
            ("roc_pool_bytes", 0),
        ],
    )
    def test_impossible_limits_are_refused_by_name(self, field, value) -> None:
        with pytest.raises(ValueError, match=field):
            _config(**{field: value})


class TestRequestStates:
    def test_there_is_no_way_back(self) -> None:
        active = _active()
        active.advance(RequestState.FINISHED)
        with pytest.raises(AssertionError):
            active.advance(RequestState.DECODE)

    def test_tokens_between_spans_prompt_and_completion(self) -> None:
        active = _active(3)
        active.completion.token_ids.extend([8, 9])
        assert active.tokens_between(0, 2) == (5, 5)
        assert active.tokens_between(2, 5) == (5, 8, 9)
        assert active.tokens_between(4, 5) == (9,)
