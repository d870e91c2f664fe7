"""What each token of a vocabulary stands for, in bytes.

Decoding a token by itself does not tell: it may be half a character, and many tokenizers drop the space that a word
brings along when it comes first. Grammars and log-probabilities need what the token adds in the middle of a text.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers write bytes: printable ones as themselves, the others as characters from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    found = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return found | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


class TokenVocabulary:
    """The bytes of a model's tokens. May be called from any thread.

    Args:
        tokenizer: the base model's; it is copied, because one that is used on two threads at once fails at random.
        vocab_size: number of the model's logits; ids that the tokenizer does not know have no bytes.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._vocab_size = vocab_size
        # Held for one use of the tokenizer at a time, so that nobody waits while the whole vocabulary is read.
        self._tokenizer_lock = threading.Lock()
        self._reading_lock = threading.Lock()
        self._shown: dict[int, bytes] = {}
        self._text_bytes: list[bytes] | None = None

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocab_size

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to a text; the name of a special token."""
        if token_id not in self._shown:
            self._shown[token_id] = self._bytes_of(token_id, skip_special_tokens=False)
        return self._shown[token_id]

    def text_bytes(self) -> Sequence[bytes]:
        """What each token adds to an answer; empty for special tokens. Takes seconds for a large vocabulary, once."""
        with self._reading_lock:
            if self._text_bytes is None:
                self._text_bytes = self._all_text_bytes()
            return self._text_bytes

    @property
    def strips_first_space(self) -> bool:
        """Whether an answer loses the space that its first token brings along."""
        spaced = (idx for idx, text in enumerate(self.text_bytes()) if len(text) > 1 and text[:1] == b" ")
        first = next(spaced, None)
        return first is not None and not self._decode([first]).startswith(" ")

    def encode_exactly(self, text: str) -> list[int] | None:
        """The tokenizer's own tokens of a text in the middle of an answer; None where it adds or drops something."""
        tokens_of = self.text_bytes()
        with self._tokenizer_lock:
            token_ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        # Tokens that were added to a tokenizer may lie beyond what the model knows.
        is_known = max(token_ids, default=0) < self._vocab_size
        is_exact = is_known and b"".join(tokens_of[token_id] for token_id in token_ids) == text.encode()
        return token_ids if is_exact else None

    def _all_text_bytes(self) -> list[bytes]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or "ByteLevel" not in repr(backend.decoder):
            return [self._bytes_of(token_id, skip_special_tokens=True) for token_id in range(self._vocab_size)]
        with self._tokenizer_lock:
            added = self._tokenizer.added_tokens_decoder
            num_known = min(len(self._tokenizer), self._vocab_size)
            pieces = self._tokenizer.convert_ids_to_tokens(list(range(num_known)))
        known = [
            self._bytes_of(token_id, skip_special_tokens=True) if token_id in added else _bytes_of_piece(piece)
            for token_id, piece in enumerate(pieces)
        ]
        return [text or b"" for text in known] + [b""] * (self._vocab_size - num_known)

    def _bytes_of(self, token_id: int, *, skip_special_tokens: bool) -> bytes:
        once = self._decode([token_id], skip_special_tokens=skip_special_tokens)
        if _REPLACEMENT in once:
            with self._tokenizer_lock:
                found = _bytes_of_piece(self._tokenizer.convert_ids_to_tokens(token_id))
            return once.encode() if found is None else found
        twice = self._decode([token_id, token_id], skip_special_tokens=skip_special_tokens)
        return (twice[len(once) :] if twice.startswith(once) else once).encode()

    def _decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        with self._tokenizer_lock:
            return self._tokenizer.decode(
                token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )


def _bytes_of_piece(piece: str | None) -> bytes | None:
    """The bytes that a piece of a vocabulary spells out; None if it is not written in bytes."""
    if piece is None:
        return None
    if (match := _BYTE_PIECE.fullmatch(piece)) is not None:
        return bytes([int(match[1], 16)])
    if all(character in _BYTE_OF_CHARACTER for character in piece):
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    return None
