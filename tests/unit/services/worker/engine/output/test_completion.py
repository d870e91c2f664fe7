from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilora.errors import GenerationFailed
from services.worker.engine.output.completion import Completion, CompletionUpdate
from services.worker.engine.output.events import FinishReason
from services.worker.engine.sampling.logprobs import TokenLogprob
from services.worker.engine.sampling.sampler import SampledToken
from services.worker.engine.sampling.sampling_params import SamplingParams
from tests.builders.models import VOCAB_SIZE, ByteTokenizer

_EOS = 1


def _id(character: str) -> int:
    return ord(character) - 29


def _completion(*, prompt=(5, 6, 7), max_model_len=500, **sampling) -> Completion:
    return Completion(
        sampling=SamplingParams(**{"max_tokens": 100, **sampling}),
        prompt_token_ids=prompt,
        decoder=ByteTokenizer(),
        eos_token_ids=frozenset({_EOS}),
        max_model_len=max_model_len,
    )


def _say(completion: Completion, *token_ids: int, **sampled) -> list[CompletionUpdate]:
    updates = []
    for token_id in token_ids:
        updates.append(completion.append(SampledToken(token_id=token_id, **sampled)))
        if updates[-1].finish_reason is not None:
            break
    return updates


def _text(updates: list[CompletionUpdate]) -> str:
    return "".join(update.delta.text for update in updates if update.delta is not None)


class TestEnd:
    def test_by_the_end_of_sequence_token(self) -> None:
        completion = _completion()
        updates = _say(completion, _id("a"), _EOS)
        assert (updates[-1].finish_reason, updates[-1].stop_reason) == (FinishReason.STOP, None)
        assert updates[-1].delta.token_ids == (_EOS,) and _text(updates) == "a"
        assert completion.token_ids == [_id("a"), _EOS]

    def test_ignore_eos_goes_on(self) -> None:
        updates = _say(_completion(ignore_eos=True), _EOS, _id("a"))
        assert updates[-1].finish_reason is None and _text(updates) == "a"

    @pytest.mark.parametrize(("is_included", "text"), [(False, "a"), (True, "a.")])
    def test_by_a_stop_token(self, is_included, text) -> None:
        completion = _completion(stop_token_ids=(_id("."),), include_stop_str_in_output=is_included)
        updates = _say(completion, _id("a"), _id("."))
        assert (updates[-1].finish_reason, updates[-1].stop_reason) == (FinishReason.STOP, _id("."))
        assert _text(updates) == text

    @pytest.mark.parametrize(("is_included", "text"), [(False, "a"), (True, "ab.c")])
    def test_by_a_stop_text_over_several_tokens(self, is_included, text) -> None:
        completion = _completion(stop=("xx", "b.c"), include_stop_str_in_output=is_included)
        updates = _say(completion, *map(_id, "ab.cd"))
        assert (updates[-1].finish_reason, updates[-1].stop_reason) == (FinishReason.STOP, "b.c")
        assert _text(updates) == text
        assert len(updates) == 4

    def test_by_a_complete_grammar(self) -> None:
        updates = _say(_completion(), _id("a"), completes_grammar=True)
        assert updates[-1].finish_reason is FinishReason.STOP and _text(updates) == "a"

    @pytest.mark.parametrize("limits", [{"max_tokens": 3}, {"max_model_len": 6}])
    def test_by_length(self, limits) -> None:
        updates = _say(_completion(**limits), *map(_id, "abcdef"))
        assert len(updates) == 3 and updates[-1].finish_reason is FinishReason.LENGTH

    def test_what_was_held_back_comes_with_the_last_token(self) -> None:
        updates = _say(_completion(stop=("b.c",), max_tokens=2), *map(_id, "ab"))
        assert _text(updates) == "ab" and updates[-1].finish_reason is FinishReason.LENGTH

    def test_stop_texts_do_not_count_before_min_tokens(self) -> None:
        updates = _say(_completion(stop=("ab",), min_tokens=2), *map(_id, "abab"))
        assert _text(updates) == "ab" and len(updates) == 4

    def test_a_stop_text_may_not_begin_before_min_tokens(self) -> None:
        updates = _say(_completion(stop=("bc",), min_tokens=2, max_tokens=4), *map(_id, "abcd"))
        assert _text(updates) == "abcd" and updates[-1].finish_reason is FinishReason.LENGTH

    @settings(max_examples=60, deadline=None)
    @given(text=st.text(alphabet="ab.", max_size=12), stop=st.sampled_from([(), ("a.",), ("ab", "b")]))
    def test_every_token_is_told_once(self, text, stop) -> None:
        completion = _completion(stop=stop, max_tokens=12, logprobs=0)
        updates = []
        for token_id in (*map(_id, text), _EOS):
            logprob = TokenLogprob(token_id=token_id, logprob=-1.0)
            updates += _say(completion, token_id, logprob=logprob)
            if updates[-1].finish_reason is not None:
                break
        deltas = [update.delta for update in updates if update.delta is not None]
        told = [token_id for delta in deltas for token_id in delta.token_ids]
        assert told == completion.token_ids
        assert [position.chosen.token_id for delta in deltas for position in delta.logprobs] == told
        assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)


class TestPromptLogprobs:
    _PROMPT = tuple(range(3, 15))

    def _logits(self) -> torch.Tensor:
        return torch.randn(len(self._PROMPT), VOCAB_SIZE, generator=torch.Generator().manual_seed(0))

    def _expected(self) -> list[float]:
        logprobs = self._logits().log_softmax(-1)
        return [float(logprobs[place, token_id]) for place, token_id in enumerate(self._PROMPT[1:])]

    @pytest.mark.parametrize(
        "chunks",
        [[(0, 12)], [(0, 5), (5, 12)], [(0, 1), (1, 11), (11, 12)], [(0, 7), (0, 12)], [(0, 7), (0, 3), (3, 12)]],
        ids=str,
    )
    def test_come_with_the_first_delta_however_the_prompt_was_read(self, chunks) -> None:
        completion = _completion(prompt=self._PROMPT, prompt_logprobs=2)
        for start, stop in chunks:
            completion.add_prompt_logits(self._logits()[start:stop], start)
        updates = _say(completion, _id("a"), _id("b"))
        positions = updates[0].delta.prompt_logprobs
        assert [position.chosen.token_id for position in positions] == list(self._PROMPT[1:])
        assert [position.chosen.logprob for position in positions] == pytest.approx(self._expected(), abs=1e-5)
        assert all(len(position.top) == 2 for position in positions)
        assert updates[1].delta.prompt_logprobs == ()

    def test_come_at_once_even_if_the_text_is_not_certain(self) -> None:
        completion = _completion(prompt=self._PROMPT, prompt_logprobs=0, stop=("ab",))
        completion.add_prompt_logits(self._logits(), 0)
        first, second = _say(completion, _id("a"), _id("x"))
        assert first.delta.text == "" and len(first.delta.prompt_logprobs) == len(self._PROMPT) - 1
        assert second.delta.text == "ax" and second.delta.prompt_logprobs == ()

    def test_are_not_kept_unless_asked_for(self) -> None:
        completion = _completion(prompt=self._PROMPT)
        completion.add_prompt_logits(self._logits(), 0)
        assert _say(completion, _id("a"))[0].delta.prompt_logprobs == ()

    def test_fail_where_the_model_fails(self) -> None:
        logits = self._logits()
        logits[4, 9] = float("nan")
        with pytest.raises(GenerationFailed) as caught:
            _completion(prompt=self._PROMPT, prompt_logprobs=0).add_prompt_logits(logits, 0)
        assert caught.value.code == "non_finite_logits"
