"""The policy alone: requests without tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.config import EngineConfig
from services.worker.engine.scheduling.request import ActiveRequest, RequestState
from services.worker.engine.scheduling.scheduler import Scheduler
from services.worker.lora.pool.residency import TicketState
from tests.builders.active_requests import CountedPlaces, make_active, play


@dataclass
class World:
    """A scheduler, its memory and its time."""

    config: EngineConfig
    places: CountedPlaces = field(default_factory=CountedPlaces)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, places=self.places, clock=lambda: self.now)

    def add(self, *requests: ActiveRequest) -> None:
        for active in requests:
            self.scheduler.add(active)

    def step(self):
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        play(step)
        return step

    def end(self, active: ActiveRequest) -> None:
        active.advance(RequestState.FINISHED)
        self.places.held.pop(active.request_id, None)
        self.scheduler.remove(active)


def _config(**changes) -> EngineConfig:
    return EngineConfig(**{"max_num_seqs": 3, "max_num_batched_tokens": 8, "max_waiting": 5, **changes})


def _world(*, memory: int = 1_000_000, **changes) -> World:
    return World(_config(**changes), CountedPlaces(memory))


class TestAdmission:
    def test_first_come_first_served_up_to_the_slots(self) -> None:
        world = _world(max_num_batched_tokens=100)
        requests = [make_active() for _ in range(4)]
        world.add(*requests)
        assert list(world.step().admitted) == requests[:3]
        assert (world.scheduler.num_running, world.scheduler.num_waiting) == (3, 1)

    def test_a_request_whose_rocs_are_on_their_way_delays_nobody(self) -> None:
        world = _world()
        cold, warm = make_active(is_resident=False), make_active()
        world.add(cold, warm)
        assert world.step().admitted == (warm,)
        cold.ticket.state = TicketState.READY
        assert world.step().admitted == (cold,)

    def test_a_request_without_a_ticket_waits(self) -> None:
        world = _world()
        active = make_active()
        active.ticket = None
        world.add(active)
        assert world.step().num_tokens == 0

    def test_a_freed_slot_goes_to_the_next(self) -> None:
        world = _world(max_num_seqs=1)
        first, second = make_active(), make_active()
        world.add(first, second)
        world.step()
        assert world.step().admitted == ()
        world.end(first)
        assert world.step().admitted == (second,)

    def test_nobody_overtakes_a_request_that_finds_no_place(self) -> None:
        world = _world(memory=20, max_num_batched_tokens=100)
        running, large, small = make_active(10), make_active(15), make_active(2)
        world.add(running, large, small)
        assert world.step().admitted == (running,)
        assert world.step().admitted == ()
        world.end(running)
        assert world.step().admitted == (large, small)


class TestChunkedPrefill:
    def test_a_long_prompt_takes_several_steps(self) -> None:
        world = _world()
        active = make_active(20)
        world.add(active)
        sizes = []
        while active.state is not RequestState.DECODE:
            sizes.append([work.num_tokens for work in world.step().chunks])
        assert sizes == [[8], [8], [4]]

    def test_decodes_come_first_and_prompts_get_the_rest(self) -> None:
        world = _world()
        first, second = make_active(4), make_active(20)
        world.add(first)
        world.step()
        world.add(second)
        step = world.step()
        assert [work.active for work in step.decodes] == [first]
        assert [(work.active, work.num_tokens) for work in step.chunks] == [(second, 7)]

    def test_a_prompt_begun_earlier_goes_on_first(self) -> None:
        world = _world()
        first, second = make_active(10), make_active(10)
        world.add(first, second)
        world.step()
        step = world.step()
        assert [(work.active, work.num_tokens) for work in step.chunks] == [(first, 2), (second, 6)]

    def test_beside_answers_prompts_have_a_limit_of_their_own(self) -> None:
        world = _world(max_prompt_tokens_beside_decodes=3)
        first, second = make_active(6), make_active(8)
        world.add(first)
        assert [work.num_tokens for work in world.step().chunks] == [6]
        world.add(second)
        assert [work.num_tokens for work in world.step().chunks] == [3]
        world.end(first)
        assert [work.num_tokens for work in world.step().chunks] == [5]

    def test_an_urgent_prompt_is_read_before_those_that_were_begun(self) -> None:
        world = _world()
        ordinary, urgent = make_active(20), make_active(10, priority=-1)
        world.add(ordinary)
        world.step()
        world.add(urgent)
        assert [(work.active, work.num_tokens) for work in world.step().chunks] == [(urgent, 8)]
        assert [(work.active, work.num_tokens) for work in world.step().chunks] == [(urgent, 2), (ordinary, 6)]


class TestPreemption:
    def test_when_memory_is_out_the_youngest_gives_way_and_comes_back_first(self) -> None:
        world = _world(memory=14, max_num_batched_tokens=100)
        old, young, later = make_active(5), make_active(5), make_active(1)
        world.add(old, young)
        world.step()
        while not (step := world.step()).preempted:
            pass
        assert step.preempted == (young,) and step.admitted == ()
        assert (young.state, young.num_computed_tokens, young.kv_handle) == (RequestState.WAITING, 0, None)
        world.add(later)
        # It has no place yet, and nobody overtakes it.
        assert world.step().admitted == ()
        world.end(old)
        step = world.step()
        assert step.admitted == (young, later)
        assert [work.num_tokens for work in step.chunks] == [young.num_tokens - 1, 1]

    def test_the_least_urgent_gives_way_however_old(self) -> None:
        world = _world(memory=14, max_num_batched_tokens=100)
        old, young = make_active(5, priority=3), make_active(5)
        world.add(old, young)
        world.step()
        while not (step := world.step()).preempted:
            pass
        assert step.preempted == (old,)

    def test_an_urgent_request_takes_the_slot_of_a_less_urgent_one(self) -> None:
        world = _world(max_num_seqs=1)
        ordinary, urgent = make_active(), make_active(priority=-1)
        world.add(ordinary)
        world.step()
        world.add(urgent)
        step = world.step()
        assert (step.preempted, step.admitted) == ((ordinary,), (urgent,))
        assert world.step().admitted == ()

    def test_equals_do_not_throw_each_other_out(self) -> None:
        world = _world(max_num_seqs=1)
        first = make_active()
        world.add(first)
        world.step()
        world.add(make_active())
        world.now = 1e6
        assert world.step().preempted == ()

    def test_after_some_preemptions_a_request_is_left_alone(self) -> None:
        world = _world(max_num_seqs=1, max_preemptions=2)
        patient = make_active(priority=5)
        world.add(patient)
        for _ in range(2):
            world.step()
            urgent = make_active()
            world.add(urgent)
            assert world.step().preempted == (patient,)
            world.end(urgent)
        assert world.step().admitted == (patient,)
        assert world.places.held[patient.request_id] == 4 + 64
        world.add(make_active())
        assert world.step().preempted == ()

    def test_without_preemptions_everybody_gets_room_for_all_at_once(self) -> None:
        world = _world(max_preemptions=0, memory=100)
        first, second = make_active(), make_active()
        world.add(first, second)
        assert world.step().admitted == (first,)


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        shapes=st.lists(
            st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(-2, 2), st.sampled_from([None, "a", "b"])),
            min_size=1,
            max_size=12,
        ),
        max_num_seqs=st.integers(1, 4),
        extra_budget=st.integers(0, 10),
        extra_memory=st.integers(0, 40),
        max_preemptions=st.integers(0, 3),
    )
    def test_every_request_ends_and_no_limit_is_broken(
        self, shapes, max_num_seqs, extra_budget, extra_memory, max_preemptions
    ) -> None:
        config = _config(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + extra_budget,
            max_waiting=len(shapes),
            max_preemptions=max_preemptions,
        )
        # The largest request fits alone; more may not.
        world = World(config, CountedPlaces(25 + extra_memory))
        answers = {}
        for num_tokens, num_answers, priority, adapter in shapes:
            active = make_active(num_tokens, adapter=adapter, priority=priority, max_tokens=num_answers)
            answers[active] = num_answers
            world.add(active)
        num_work = sum(num_tokens + num_answers for num_tokens, num_answers, _, _ in shapes)
        for _ in range(num_work * (max_preemptions + 2)):
            step = world.step()
            assert step.num_tokens <= config.max_num_batched_tokens
            assert world.scheduler.num_running <= max_num_seqs
            assert world.places.num_free >= 0
            works = [*step.decodes, *step.chunks]
            assert len({work.active.request_id for work in works}) == len(works)
            assert not set(step.admitted) & set(step.preempted)
            world.now += 1
            for active in list(world.scheduler.requests()):
                assert active.num_preemptions <= max_preemptions
                if len(active.completion.token_ids) == answers[active]:
                    world.end(active)
        assert all(active.state is RequestState.FINISHED for active in answers)

    @settings(max_examples=25, deadline=None)
    @given(data=st.data(), priority=st.integers(0, 4), num_plans=st.integers(1, 6))
    def test_no_stream_of_others_keeps_a_request_waiting_for_ever(self, data, priority, num_plans) -> None:
        """A heavy plan's last request against a queue that others keep full, each newcomer as urgent as can be."""
        world = World(_config(max_num_seqs=2, priority_ageing_seconds=2.0))
        for _ in range(3):
            world.add(make_active(6, adapter="heavy", submitted_at=world.now))
            world.step()
        slow = make_active(6, adapter="heavy", priority=priority, submitted_at=world.now)
        world.add(slow)
        num_steps = 0
        while slow.state is not RequestState.FINISHED:
            while world.scheduler.num_waiting < 6:
                adapter = data.draw(st.sampled_from([f"p{idx}" for idx in range(num_plans)])) + (
                    f"-{num_steps}" if num_plans > 4 else ""
                )
                world.add(make_active(5, adapter=adapter, submitted_at=world.now))
            world.step()
            world.now += 1
            for active in list(world.scheduler.requests()):
                if len(active.completion.token_ids) >= 2:
                    world.end(active)
            num_steps += 1
            assert num_steps < 150, "starved"

    @pytest.mark.parametrize("num_light", [1, 3])
    def test_a_light_plan_is_served_beside_one_that_floods(self, num_light) -> None:
        """Of what is served while both have requests, each plan gets its share."""
        world = World(_config(max_num_seqs=2, max_num_batched_tokens=16))
        names = ["flood", *(f"light{idx}" for idx in range(num_light))]
        served = dict.fromkeys(names, 0)
        for _ in range(40):
            world.add(make_active(6, adapter="flood"))
        for step in range(200):
            for name in names[1:]:
                if not any(active.flow == (name,) for active in world.scheduler.waiting()):
                    world.add(make_active(6, adapter=name))
            for work in (*(found := world.step()).decodes, *found.chunks):
                served[work.active.flow[0]] += work.num_tokens
            for active in list(world.scheduler.requests()):
                if len(active.completion.token_ids) >= 4:
                    world.end(active)
            if step > 20 and not any(active.flow == ("flood",) for active in world.scheduler.waiting()):
                break
        assert max(served.values()) <= 1.3 * min(served.values())


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("max_num_seqs", 0),
            ("max_model_len", 1),
            ("max_num_batched_tokens", 2),
            ("max_waiting", 0),
            ("roc_pool_bytes", 0),
            ("max_prompt_tokens_beside_decodes", 0),
            ("max_queue_seconds", 0.0),
            ("priority_ageing_seconds", 0.0),
            ("max_preemptions", -1),
            ("max_step_seconds", 0.0),
        ],
    )
    def test_impossible_limits_are_refused_by_name(self, field, value) -> None:
        with pytest.raises(ValueError, match=field):
            _config(**{field: value})


class TestRequestStates:
    def test_there_is_no_way_back_from_the_end(self) -> None:
        active = make_active()
        active.advance(RequestState.FINISHED)
        with pytest.raises(AssertionError):
            active.advance(RequestState.DECODE)

    def test_tokens_between_spans_prompt_and_completion(self) -> None:
        active = make_active(3)
        active.completion.token_ids.extend([8, 9])
        assert active.tokens_between(0, 2) == (5, 5)
        assert active.tokens_between(2, 5) == (5, 8, 9)
        assert active.tokens_between(4, 5) == (9,)
