"""Streaming text equals decoding everything at once, for every kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.output.detokenizer import Detokenizer
from services.worker.models.token_vocabulary import TokenVocabulary
from tests.builders.tokenizers import TOKENIZERS, byte_level_tokenizer, metaspace_tokenizer

_TEXTS = st.text(alphabet=st.sampled_from("ab .,\n'éß漢字🙂👩‍👩‍👧\u0301\u200d "), max_size=25)


_VOCABULARY = TokenVocabulary(byte_level_tokenizer(), len(byte_level_tokenizer()))
_BYTE_TOKENS = {text[0]: token_id for token_id, text in enumerate(_VOCABULARY.text_bytes()) if len(text) == 1}
_FRAGMENTS = [b"\x80", b"\xf0\x9f", b"\xe6", b"\xbc", "🙂".encode(), b"a"]


class _CountingDecoder:
    """A tokenizer that remembers the longest text it was asked for."""

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def decode(self, token_ids: list[int], **options) -> str:
        self.longest = max(self.longest, len(token_ids))
        return self._tokenizer.decode(token_ids, **options)


def _stream(tokenizer, token_ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop)
    return [*(detokenizer.append(token_id) for token_id in token_ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
class TestStream:
    @settings(max_examples=120, deadline=None)
    @given(text=_TEXTS)
    def test_of_a_text_equals_decoding_it_at_once(self, kind, text) -> None:
        tokenizer = TOKENIZERS[kind]()
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


class TestCharacters:
    @settings(max_examples=200, deadline=None)
    @given(token_ids=st.lists(st.integers(0, 260), max_size=20))
    def test_any_tokens_whatever_equal_decoding_them_at_once(self, token_ids) -> None:
        tokenizer = byte_level_tokenizer()
        token_ids = [token_id % len(tokenizer) for token_id in token_ids]
        assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)

    @settings(max_examples=300, deadline=None)
    @given(spelled=st.lists(st.sampled_from(_FRAGMENTS), max_size=40))
    def test_bytes_that_are_no_text_equal_decoding_them_at_once(self, spelled) -> None:
        tokenizer = byte_level_tokenizer()
        token_ids = [_BYTE_TOKENS[byte] for byte in b"".join(spelled)]
        assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)

    @pytest.mark.parametrize("token_id", [1, _BYTE_TOKENS[0x80]], ids=["special", "half a character"])
    def test_tokens_that_never_become_text_are_not_read_again_and_again(self, token_id) -> None:
        counting = _CountingDecoder(byte_level_tokenizer())
        text = "".join(_stream(counting, [_BYTE_TOKENS[ord("a")], *[token_id] * 300, _BYTE_TOKENS[ord("b")]]))
        assert text == ("ab" if token_id == 1 else "a" + "\ufffd" * 300 + "b")
        assert counting.longest < 32

    def test_special_tokens_at_the_beginning_are_not_read_again_and_again(self) -> None:
        counting = _CountingDecoder(metaspace_tokenizer())
        a = metaspace_tokenizer()("a")["input_ids"]
        assert "".join(_stream(counting, [1] * 300 + a + a)) == metaspace_tokenizer().decode(a + a)
        assert counting.longest < 32

    def test_characters_that_are_no_characters_do_not_wait_for_ever(self) -> None:
        pieces = _stream(byte_level_tokenizer(), [_BYTE_TOKENS[0x80]] * 40)
        assert len("".join(pieces[:-1])) > 20

    def test_an_unfinished_character_waits(self) -> None:
        tokenizer = byte_level_tokenizer()
        token_ids = tokenizer("a🙂b")["input_ids"]
        pieces = _stream(tokenizer, token_ids)
        assert "".join(pieces) == "a🙂b"
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_character_that_never_ends_comes_at_the_end(self) -> None:
        tokenizer = byte_level_tokenizer()
        token_ids = tokenizer("a🙂")["input_ids"][:-1]
        pieces = _stream(tokenizer, token_ids)
        assert pieces[0] == "a"
        assert "".join(pieces) == tokenizer.decode(token_ids)

    def test_special_tokens_have_a_text_if_asked_for(self) -> None:
        tokenizer = byte_level_tokenizer()
        detokenizer = Detokenizer(tokenizer, skips_special_tokens=False)
        a = tokenizer("a")["input_ids"][0]
        assert [detokenizer.append(token_id) for token_id in (a, 1, a)] == ["a", "</s>", "a"]

    def test_special_tokens_have_no_text(self) -> None:
        tokenizer = byte_level_tokenizer()
        a = tokenizer("a")["input_ids"][0]
        assert _stream(tokenizer, [0, a, 1, a]) == ["", "a", "", "a", ""]


class TestStop:
    def test_the_answer_ends_before_the_stop_text(self) -> None:
        tokenizer = byte_level_tokenizer()
        pieces = _stream(tokenizer, tokenizer("ab.\nab")["input_ids"], (".\n",))
        assert "".join(pieces) == "ab"

    def test_the_stop_text_may_stay(self) -> None:
        tokenizer = byte_level_tokenizer()
        detokenizer = Detokenizer(tokenizer, (".\n",), includes_stop=True)
        text = "".join(detokenizer.append(token_id) for token_id in tokenizer("ab.\nab")["input_ids"])
        assert (text, detokenizer.stop_text) == ("ab.\n", ".\n")

    def test_nothing_stops_and_nothing_waits_where_it_may_not(self) -> None:
        tokenizer = byte_level_tokenizer()
        detokenizer = Detokenizer(tokenizer, (".\n",))
        token_ids = tokenizer("a.\nb")["input_ids"]
        assert [detokenizer.append(token_id, may_stop=False) for token_id in token_ids] == ["a", ".", "\n", "b"]

    def test_the_beginning_of_a_stop_text_is_held_back_and_given_out_if_it_was_none(self) -> None:
        tokenizer = byte_level_tokenizer()
        detokenizer = Detokenizer(tokenizer, ("..,",))
        token_ids = tokenizer("a..b")["input_ids"]
        assert [detokenizer.append(token_id) for token_id in token_ids] == ["a", "", "", "..b"]
        assert not detokenizer.is_stopped

    def test_what_is_held_back_at_the_end_belongs_to_the_answer(self) -> None:
        tokenizer = byte_level_tokenizer()
        assert "".join(_stream(tokenizer, tokenizer("ab.")["input_ids"], (".b",))) == "ab."

    @settings(max_examples=150, deadline=None)
    @given(text=_TEXTS, stop=st.lists(st.text(alphabet="ab .🙂", min_size=1, max_size=3), min_size=1, max_size=3))
    def test_it_cuts_where_the_first_stop_text_begins(self, text, stop) -> None:
        tokenizer = byte_level_tokenizer()
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        detokenizer = Detokenizer(tokenizer, stop)
        streamed = ""
        for token_id in token_ids:
            streamed += detokenizer.append(token_id)
            if detokenizer.is_stopped:
                break
        streamed += detokenizer.finish()
        ends = [place + len(one) for one in stop if (place := text.find(one)) >= 0]
        assert detokenizer.is_stopped == bool(ends)
        if not ends:
            assert streamed == text
        else:
            # The stop text that is complete first decides; several may be complete with one token.
            assert text.startswith(streamed)
            assert not any(one in streamed for one in stop)
            assert any(text[len(streamed) :].startswith(one) for one in stop)
