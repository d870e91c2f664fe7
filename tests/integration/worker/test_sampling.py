"""Everything a client may ask of an answer, over gRPC."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from hilora.errors import InvalidInput, InvalidSamplingParams
from hilora_rpc.v1 import worker_pb2
from services.common.rpc_client import translated_errors

_PROMPT = "hello there"


async def _generate(stack, *, request_id="r", **sampling) -> list[worker_pb2.GenerateEvent]:
    request = worker_pb2.GenerateRequest(
        request_id=request_id,
        prompt=_PROMPT,
        sampling=worker_pb2.SamplingParams(**{"seed": 7, "max_tokens": 8, "ignore_eos": True, **sampling}),
    )
    with translated_errors("worker"):
        return [event async for event in stack.stub.Generate(request)]


def _deltas(events, choice_idx: int = 0) -> list[worker_pb2.TextDelta]:
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    return [delta for delta in deltas if delta.choice_idx == choice_idx]


def _tokens(events, choice_idx: int = 0) -> list[int]:
    return [token for delta in _deltas(events, choice_idx) for token in delta.token_ids]


def _text(events, choice_idx: int = 0) -> str:
    return "".join(delta.text for delta in _deltas(events, choice_idx))


def _finished(events) -> list[worker_pb2.Finished]:
    return [event.finished for event in events if event.WhichOneof("event") == "finished"]


class TestLogprobs:
    async def test_of_the_answer_and_of_the_prompt(self, stack) -> None:
        events = await _generate(stack, logprobs=3, prompt_logprobs=2, temperature=1.5, top_k=5)
        deltas = _deltas(events)
        for delta in deltas:
            assert [position.chosen.token_id for position in delta.logprobs] == list(delta.token_ids)
            for position in delta.logprobs:
                top = [token.logprob for token in position.top]
                assert len(top) == 3 and top == sorted(top, reverse=True)
                assert all(math.isfinite(logprob) and logprob <= 0 for logprob in (*top, position.chosen.logprob))
        prompt = deltas[0].prompt_logprobs
        assert b"".join(position.chosen.token_bytes for position in prompt) == _PROMPT[1:].encode()
        assert all(len(position.top) == 2 for position in prompt)
        assert not any(delta.prompt_logprobs for delta in deltas[1:])

    async def test_bytes_of_the_tokens_are_the_text(self, stack) -> None:
        events = await _generate(stack, logprobs=0, max_tokens=20)
        written = b"".join(position.chosen.token_bytes for delta in _deltas(events) for position in delta.logprobs)
        for name in (b"<s>", b"</s>", b"<pad>"):
            written = written.replace(name, b"")
        assert written.decode(errors="replace") == _text(events)

    async def test_are_the_same_however_tokens_are_chosen(self, stack) -> None:
        greedy = await _generate(stack, temperature=0, logprobs=1, max_tokens=1)
        biased = await _generate(stack, temperature=0, logprobs=1, max_tokens=1, logit_bias={40: 100.0})
        (first,), (second,) = _deltas(greedy)[0].logprobs, _deltas(biased)[0].logprobs
        assert second.chosen.token_id == 40 and first.chosen.token_id != 40
        assert first.top[0].token_id == second.top[0].token_id == first.chosen.token_id
        assert first.top[0].logprob == pytest.approx(second.top[0].logprob, abs=1e-5)


class TestChoices:
    async def test_equal_one_call_for_each_seed(self, stack) -> None:
        together = await _generate(stack, n=3, best_of=3)
        alone = [_tokens(await _generate(stack, seed=7 + choice_idx)) for choice_idx in range(3)]
        assert [_tokens(together, choice_idx) for choice_idx in range(3)] == alone
        assert sorted(finished.choice_idx for finished in _finished(together)) == [0, 1, 2]
        assert [event.WhichOneof("event") for event in together].count("started") == 1
        assert together[0].WhichOneof("event") == "started" and together[-1].WhichOneof("event") == "finished"

    async def test_more_than_the_batch_holds_take_turns(self, stack) -> None:
        assert len(_finished(await _generate(stack, n=10))) == 10

    async def test_are_aborted_by_the_id_of_the_call(self, stack) -> None:
        request = worker_pb2.GenerateRequest(
            request_id="many",
            prompt=_PROMPT,
            sampling=worker_pb2.SamplingParams(n=6, max_tokens=50, ignore_eos=True),
        )
        running = stack.stub.Generate(request)
        await anext(aiter(running))
        assert (await stack.stub.Abort(worker_pb2.AbortRequest(request_id="many"))).was_running
        finished = _finished([event async for event in running])
        assert len(finished) == 6
        assert worker_pb2.FINISH_REASON_ABORT in {one.finish_reason for one in finished}


class TestStops:
    async def test_a_stop_token(self, stack) -> None:
        tokens = _tokens(await _generate(stack, temperature=0))
        place = next(idx for idx in range(1, 8) if tokens[idx] not in tokens[:idx])
        events = await _generate(stack, temperature=0, stop_token_ids=[tokens[place]])
        (finished,) = _finished(events)
        assert (finished.finish_reason, finished.stop_token_id) == (
            worker_pb2.FINISH_REASON_STOP,
            tokens[place],
        )
        assert _tokens(events) == tokens[: place + 1]
        later = await _generate(stack, temperature=0, stop_token_ids=[tokens[place]], min_tokens=8)
        assert _finished(later)[0].finish_reason == worker_pb2.FINISH_REASON_LENGTH
        assert tokens[place] not in _tokens(later)

    async def test_a_stop_text_is_named_and_may_stay(self, stack) -> None:
        grammar = worker_pb2.Grammar(regex="abcdefgh")
        for stays, text in ((False, "abc"), (True, "abcde")):
            events = await _generate(stack, grammar=grammar, stop=["de"], include_stop_str_in_output=stays)
            assert (_text(events), _finished(events)[0].stop_text) == (text, "de")


class TestGrammars:
    async def test_json(self, stack) -> None:
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "size": {"enum": [1, 2, 3]}},
            "required": ["ok", "size"],
            "additionalProperties": False,
        }
        grammar = worker_pb2.Grammar(json_schema=json.dumps(schema))
        # A random model would rather write spaces than anything else the grammar allows.
        events = await _generate(stack, grammar=grammar, max_tokens=48, n=3, logit_bias=_no_white_space())
        for choice_idx in range(3):
            value = json.loads(_text(events, choice_idx))
            assert isinstance(value["ok"], bool) and value["size"] in {1, 2, 3}
        assert {finished.finish_reason for finished in _finished(events)} == {worker_pb2.FINISH_REASON_STOP}

    async def test_choices_beside_free_answers(self, stack) -> None:
        grammar = worker_pb2.Grammar(choice=worker_pb2.ChoiceGrammar(texts=["yes", "no", "🙂"]))
        free = _tokens(await _generate(stack))
        outcomes = await asyncio.gather(
            _generate(stack, request_id="free"), *(_generate(stack, request_id=f"c{i}", grammar=grammar) for i in "abc")
        )
        assert _tokens(outcomes[0]) == free
        assert {_text(events) for events in outcomes[1:]} <= {"yes", "no", "🙂"}

    async def test_that_cannot_be_used(self, stack) -> None:
        with pytest.raises(InvalidInput) as caught:
            await _generate(stack, grammar=worker_pb2.Grammar(regex="a(b"))
        assert caught.value.code == "invalid_grammar"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"n": 0}, "n"),
            ({"n": 2, "best_of": 4}, "best_of"),
            ({"logprobs": 21}, "logprobs"),
            ({"min_p": 1.5}, "min_p"),
            ({"min_tokens": 9}, "min_tokens"),
            ({"logit_bias": {1: 200.0}}, "logit_bias"),
            ({"stop_token_ids": [70_000]}, "stop_token_ids"),
        ],
    )
    async def test_name_the_field(self, stack, fields, place) -> None:
        with pytest.raises(InvalidSamplingParams) as caught:
            await _generate(stack, **fields)
        assert caught.value.place == place


def _no_white_space() -> dict[int, float]:
    from tokenizers import pre_tokenizers

    symbols = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return {symbols.index(symbol): -100.0 for symbol in ("Ġ", "Ċ", "č", "ĉ")}
