from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.models.token_vocabulary import TokenVocabulary
from tests.builders.models import VOCAB_SIZE, ByteTokenizer
from tests.builders.tokenizers import TOKENIZERS, byte_level_tokenizer, metaspace_tokenizer, word_tokenizer

_BUILT = {kind: TokenVocabulary(build(), len(build()) + 5) for kind, build in TOKENIZERS.items()}
_TEXTS = st.lists(st.sampled_from(["a", "b", "a", ".", ",", "é", "漢字"]), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
class TestBytes:
    @settings(max_examples=80, deadline=None)
    @given(text=_TEXTS)
    def test_together_are_the_decoded_text(self, kind, text) -> None:
        tokenizer, vocabulary = TOKENIZERS[kind](), _BUILT[kind]
        token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        joined = b"".join(vocabulary.text_bytes()[token_id] for token_id in token_ids)
        stripped = joined.removeprefix(b" ") if vocabulary.strips_first_space else joined
        assert stripped.decode() == tokenizer.decode(token_ids)

    def test_special_and_unknown_tokens_add_nothing_to_an_answer(self, kind) -> None:
        tokenizer, vocabulary = TOKENIZERS[kind](), _BUILT[kind]
        texts = vocabulary.text_bytes()
        assert len(texts) == vocabulary.vocab_size == len(tokenizer) + 5
        assert texts[1] == b"" and list(texts[-5:]) == [b""] * 5

    def test_special_tokens_show_their_name(self, kind) -> None:
        assert _BUILT[kind].bytes_of(1).strip() == b"</s>"
        assert _BUILT[kind].bytes_of(1) == _BUILT[kind].bytes_of(1)


class TestKinds:
    def test_half_characters_are_bytes(self) -> None:
        tokenizer, vocabulary = byte_level_tokenizer(), _BUILT["byte-level"]
        token_ids = tokenizer("🙂")["input_ids"]
        assert len(token_ids) > 1
        assert b"".join(vocabulary.bytes_of(token_id) for token_id in token_ids) == "🙂".encode()
        assert not vocabulary.strips_first_space

    def test_fallback_pieces_are_bytes(self) -> None:
        vocabulary = _BUILT["metaspace"]
        token_id = metaspace_tokenizer().convert_tokens_to_ids("<0xF0>")
        assert vocabulary.bytes_of(token_id) == b"\xf0"
        assert vocabulary.strips_first_space

    def test_words_bring_their_space(self) -> None:
        vocabulary = _BUILT["words"]
        assert vocabulary.bytes_of(word_tokenizer().convert_tokens_to_ids("漢字")) == " 漢字".encode()
        assert vocabulary.strips_first_space

    def test_anything_that_decodes_will_do(self) -> None:
        vocabulary = TokenVocabulary(ByteTokenizer(), VOCAB_SIZE)
        assert vocabulary.text_bytes()[3:6] == [b" ", b"!", b'"']
        assert not vocabulary.strips_first_space


class TestEncodeExactly:
    def test_takes_the_tokenizers_own_cut(self) -> None:
        tokenizer = byte_level_tokenizer()
        assert _BUILT["byte-level"].encode_exactly("a é a") == tokenizer("a é a")["input_ids"]

    def test_refuses_tokens_that_the_model_does_not_have(self) -> None:
        tokenizer = copy.deepcopy(byte_level_tokenizer())
        vocabulary = TokenVocabulary(tokenizer, len(tokenizer))
        tokenizer.add_tokens(["hello world"])
        beyond = TokenVocabulary(tokenizer, vocabulary.vocab_size)
        assert beyond.encode_exactly("say") == vocabulary.encode_exactly("say")
        assert beyond.encode_exactly("say hello world") is None

    def test_refuses_what_the_tokenizer_changes(self) -> None:
        assert _BUILT["words"].encode_exactly(" a b") == word_tokenizer()("a b")["input_ids"]
        assert _BUILT["words"].encode_exactly("a  b") is None
        assert _BUILT["words"].encode_exactly(" x") is None
