"""Several answers to one prompt, over a real engine with a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hilora.errors import Conflict, GenerationFailed, InvalidInput, InvalidSamplingParams, QueueFull
from hilora.routing_plan import RoutingPlan
from services.worker.engine.engine import Engine
from services.worker.engine.output.events import EngineEvent, Finished, FinishReason, Started, TextDelta
from services.worker.engine.sampling.grammar import GrammarCompiler
from services.worker.engine.sampling.sampling_params import Grammar, GrammarKind, SamplingParams
from services.worker.generation import Generation, GenerationRequest, TokenPrompt
from services.worker.infra.merged_components import MergedComponents
from services.worker.models.prompt_encoder import PromptEncoder
from services.worker.models.token_vocabulary import TokenVocabulary
from services.worker.preparation import PlanPreparer
from tests.builders.components import InMemoryComponentSource
from tests.builders.engine import make_engine
from tests.builders.models import load_tiny


class EmptyCatalog:
    catalog_generation = 0

    def has_adapter(self, adapter_id: str) -> bool:
        return False

    async def wait_for_generation(self, catalog_generation: int, *, timeout_seconds: float) -> bool:
        return True


class Setup:
    def __init__(self, **config) -> None:
        loaded = load_tiny()
        vocabulary = TokenVocabulary(loaded.tokenizer, loaded.vocab_size)
        self.engine: Engine = make_engine(loaded, **config)
        self.generation = Generation(
            engine=self.engine,
            encoder=PromptEncoder(loaded.tokenizer, model_name="tiny"),
            vocabulary=vocabulary,
            compiler=GrammarCompiler(vocabulary, eos_token_ids=loaded.eos_token_ids),
            catalog=EmptyCatalog(),
            preparer=PlanPreparer(
                engine=self.engine, merger=MergedComponents(InMemoryComponentSource(), capacity_bytes=1 << 20)
            ),
        )


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    built = Setup()
    built.engine.start()
    yield built
    await asyncio.to_thread(built.engine.stop, drain_seconds=0)


def _request(request_id: str = "r", **sampling) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt=TokenPrompt(token_ids=(5, 6, 7, 8)),
        sampling=SamplingParams(**{"max_tokens": 6, "ignore_eos": True, "seed": 3, **sampling}),
        plan=RoutingPlan(),
    )


async def _events(setup: Setup, request: GenerationRequest) -> list[EngineEvent]:
    return [event async for event in setup.generation.generate(request)]


def _tokens(events: list[EngineEvent], choice_idx: int = 0) -> list[int]:
    deltas = [event for event in events if isinstance(event, TextDelta) and event.choice_idx == choice_idx]
    return [token_id for delta in deltas for token_id in delta.token_ids]


class TestChoices:
    async def test_start_once_and_finish_each(self, setup) -> None:
        events = await _events(setup, _request(n=3))
        assert [isinstance(event, Started) for event in events].count(True) == 1
        assert isinstance(events[0], Started)
        finished = [event for event in events if isinstance(event, Finished)]
        assert sorted(event.choice_idx for event in finished) == [0, 1, 2]
        assert {event.num_prompt_tokens for event in finished} == {4}
        assert isinstance(events[-1], Finished)

    async def test_have_seeds_that_count_up(self, setup) -> None:
        events = await _events(setup, _request(n=3))
        alone = [_tokens(await _events(setup, _request(seed=3 + choice_idx))) for choice_idx in range(3)]
        assert [_tokens(events, choice_idx) for choice_idx in range(3)] == alone
        assert alone[0] != alone[1]

    async def test_of_the_largest_seed_begin_again_at_zero(self, setup) -> None:
        events = await _events(setup, _request(n=2, seed=2**64 - 1))
        assert _tokens(events, 1) == _tokens(await _events(setup, _request(seed=0)))

    async def test_are_aborted_together(self, setup) -> None:
        events = setup.generation.generate(_request(n=3, max_tokens=80))
        async with contextlib.aclosing(events):
            assert isinstance(await anext(events), Started)
            assert setup.generation.abort("r")
            finished = [event async for event in events if isinstance(event, Finished)]
        assert len(finished) == 3
        assert FinishReason.ABORT in {event.finish_reason for event in finished}
        assert not setup.generation.abort("r")

    async def test_go_when_their_caller_goes(self, setup) -> None:
        events = setup.generation.generate(_request(n=3, max_tokens=80))
        assert isinstance(await anext(events), Started)
        await events.aclose()
        # The same id is free at once for another call; its own requests are new ones.
        for _ in range(200):
            if setup.engine.stats().num_running == 0:
                break
            await asyncio.sleep(0.01)
        assert setup.engine.stats().num_running == 0
        assert not setup.generation.abort("r")

    async def test_an_id_belongs_to_one_call_at_a_time(self, setup) -> None:
        events = setup.generation.generate(_request(n=2, max_tokens=80))
        await anext(events)
        with pytest.raises(Conflict) as caught:
            await _events(setup, _request())
        assert caught.value.code == "duplicate_request_id"
        await events.aclose()

    async def test_an_id_is_free_when_the_last_event_is_heard(self, setup) -> None:
        async for event in setup.generation.generate(_request(n=1)):
            if isinstance(event, Finished):
                assert _tokens(await _events(setup, _request()))

    async def test_fail_as_one(self, setup) -> None:
        # Token 125 - 29 is beyond this tokenizer, so one of the two texts cannot be written.
        grammar = Grammar(kind=GrammarKind.CHOICE, choices=("abcdefgh", "x}"))
        with pytest.raises(GenerationFailed) as caught:
            await _events(setup, _request(n=8, grammar=grammar, logit_bias={ord("x") - 29: 60.0}))
        assert caught.value.code == "grammar_dead_end"
        assert not setup.generation.abort("r")

    async def test_that_do_not_all_fit_the_queue_leave_none_behind(self) -> None:
        setup = Setup(max_waiting=2)
        with pytest.raises(QueueFull):
            await _events(setup, _request(n=4))
        setup.engine.run_step()
        assert setup.engine.stats().num_waiting == setup.engine.stats().num_running == 0
        assert not setup.generation.abort("r")


class TestLogprobs:
    async def test_carry_the_bytes_of_their_tokens(self, setup) -> None:
        events = await _events(setup, _request(n=2, logprobs=2, prompt_logprobs=1))
        deltas = [event for event in events if isinstance(event, TextDelta)]
        for delta in deltas:
            assert [position.chosen.token_id for position in delta.logprobs] == list(delta.token_ids)
            for position in delta.logprobs:
                assert len(position.top) == 2
                token_id = position.chosen.token_id
                assert position.chosen.token_bytes == (bytes([29 + token_id]) if token_id > 2 else b"")
        told = [delta for delta in deltas if delta.prompt_logprobs]
        assert [delta.choice_idx for delta in told] == [0]
        assert [position.chosen.token_bytes for position in told[0].prompt_logprobs] == [b"#", b"$", b"%"]


class TestGrammar:
    async def test_holds_for_every_choice(self, setup) -> None:
        grammar = Grammar(kind=GrammarKind.CHOICE, choices=("red", "green", "blue"))
        events = await _events(setup, _request(n=4, grammar=grammar, temperature=2.0, logprobs=0))
        texts = ["".join(e.text for e in events if isinstance(e, TextDelta) and e.choice_idx == i) for i in range(4)]
        assert set(texts) <= {"red", "green", "blue"}
        reasons = {(event.finish_reason, event.stop_reason) for event in events if isinstance(event, Finished)}
        assert reasons == {(FinishReason.STOP, None)}

    async def test_that_cannot_be_used_is_refused_before_anything_runs(self, setup) -> None:
        with pytest.raises(InvalidInput) as caught:
            await _events(setup, _request(grammar=Grammar(kind=GrammarKind.REGEX, text="(")))
        assert caught.value.code == "invalid_grammar"
        assert setup.engine.stats().counters.num_prompt_tokens == 0


async def test_token_ids_that_the_model_lacks_are_refused(setup) -> None:
    with pytest.raises(InvalidSamplingParams) as caught:
        await _events(setup, _request(n=2, stop_token_ids=(5000,)))
    assert caught.value.place == "stop_token_ids"
