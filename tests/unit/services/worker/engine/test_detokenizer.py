"""Streaming text equals decoding everything at once, for every kind of tokenizer."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.engine.detokenizer import Detokenizer

_TEXTS = st.text(alphabet=st.sampled_from("ab .,\n'éß漢字🙂👩‍👩‍👧\u0301\u200d "), max_size=25)


@cache
def _byte_level():
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {symbol: idx for idx, symbol in enumerate(symbols)}
    # Merges that end in the middle of a character, as learned ones do.
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é漢🙂")[0][0]
    merges = [(pieces[1], pieces[2]), (pieces[3], pieces[4]), (pieces[6], pieces[7])]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def _metaspace():
    """As SentencePiece models do it: a word carries its leading space, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", ".", ",", "'"]
    vocab = {symbol: idx for idx, symbol in enumerate(symbols)}
    model = BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@cache
def _words():
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocab = {word: idx for idx, word in enumerate(["<unk>", "</s>", "a", "b", ".", ",", "é", "漢字"])}
    tokenizer = Tokenizer(WordLevel(vocab=vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


_TOKENIZERS = {"byte-level": _byte_level, "metaspace": _metaspace, "words": _words}


def _stream(tokenizer, token_ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop)
    return [*(detokenizer.append(token_id) for token_id in token_ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", list(_TOKENIZERS))
class TestStream:
    @settings(max_examples=120, deadline=None)
    @given(text=_TEXTS)
    def test_of_a_text_equals_decoding_it_at_once(self, kind, text) -> None:
        tokenizer = _TOKENIZERS[kind]()
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


class TestCharacters:
    @settings(max_examples=200, deadline=None)
    @given(token_ids=st.lists(st.integers(0, 260), max_size=20))
    def test_any_tokens_whatever_equal_decoding_them_at_once(self, token_ids) -> None:
        tokenizer = _byte_level()
        token_ids = [token_id % len(tokenizer) for token_id in token_ids]
        assert "".join(_stream(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)

    def test_an_unfinished_character_waits(self) -> None:
        tokenizer = _byte_level()
        token_ids = tokenizer("a🙂b")["input_ids"]
        pieces = _stream(tokenizer, token_ids)
        assert "".join(pieces) == "a🙂b"
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_character_that_never_ends_comes_at_the_end(self) -> None:
        tokenizer = _byte_level()
        token_ids = tokenizer("a🙂")["input_ids"][:-1]
        pieces = _stream(tokenizer, token_ids)
        assert pieces[0] == "a"
        assert "".join(pieces) == tokenizer.decode(token_ids)

    def test_special_tokens_have_no_text(self) -> None:
        tokenizer = _byte_level()
        a = tokenizer("a")["input_ids"][0]
        assert _stream(tokenizer, [0, a, 1, a]) == ["", "a", "", "a", ""]


class TestStop:
    def test_the_answer_ends_before_the_stop_text(self) -> None:
        tokenizer = _byte_level()
        pieces = _stream(tokenizer, tokenizer("ab.\nab")["input_ids"], (".\n",))
        assert "".join(pieces) == "ab"

    def test_the_beginning_of_a_stop_text_is_held_back_and_given_out_if_it_was_none(self) -> None:
        tokenizer = _byte_level()
        detokenizer = Detokenizer(tokenizer, ("..,",))
        token_ids = tokenizer("a..b")["input_ids"]
        assert [detokenizer.append(token_id) for token_id in token_ids] == ["a", "", "", "..b"]
        assert not detokenizer.is_stopped

    def test_what_is_held_back_at_the_end_belongs_to_the_answer(self) -> None:
        tokenizer = _byte_level()
        assert "".join(_stream(tokenizer, tokenizer("ab.")["input_ids"], (".b",))) == "ab."

    @settings(max_examples=150, deadline=None)
    @given(text=_TEXTS, stop=st.lists(st.text(alphabet="ab .🙂", min_size=1, max_size=3), min_size=1, max_size=3))
    def test_it_cuts_where_the_first_stop_text_begins(self, text, stop) -> None:
        tokenizer = _byte_level()
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
