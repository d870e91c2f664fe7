"""Tokens to text, as a stream of whole characters that together equal decoding all tokens at once.

A token can end in the middle of a UTF-8 sequence, and what a token looks like can depend on its neighbour (leading
spaces). So new tokens are decoded together with the ones before them, and text is given out once it ends in a whole
character; the rest waits for the next token. Text that may be the beginning of a stop text waits as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
_MAX_WAITING = 8
"""Tokens that may wait for the rest of their character, or for any text at all. Each of them is read again with every
token that follows, and a model that has lost its way writes thousands."""
_MAX_CHARACTER_BYTES = 4
"""Of UTF-8: what still ends in an unfinished character so many tokens later was none."""


class TokenDecoder(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of some tokens."""
        ...


class Detokenizer:
    """The text of one completion.

    Args:
        decoder: the model's tokenizer.
        stop: texts that end the answer.
        includes_stop: whether the stop text itself stays part of the answer.
        skips_special_tokens: whether special tokens have no text.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        stop: Sequence[str] = (),
        *,
        includes_stop: bool = False,
        skips_special_tokens: bool = True,
    ) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._includes_stop = includes_stop
        self._skips_special_tokens = skips_special_tokens
        self._token_ids: list[int] = []
        # Tokens before `_context_start` are never looked at again; those before `_read_end` have become text.
        self._context_start = 0
        self._read_end = 0
        self._held_back = ""
        self._stop_text: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text has appeared."""
        return self._stop_text is not None

    @property
    def stop_text(self) -> str | None:
        """The stop text that has appeared."""
        return self._stop_text

    def append(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token and return the text that is now certain, often none.

        Args:
            token_id: the next token.
            may_stop: whether its text may be part of a stop text.
        """
        self._token_ids.append(token_id)
        text = self._read(is_last=False)
        return self._release(text, is_last=False) if may_stop else text

    def finish(self) -> str:
        """The text that was still held back. Call once, at the end."""
        return self._release(self._read(is_last=True), is_last=True)

    def _read(self, *, is_last: bool) -> str:
        """Decode what is new; empty while it ends in an unfinished character."""
        context = self._decode(self._token_ids[self._context_start : self._read_end])
        text = self._decode(self._token_ids[self._context_start :])
        stop = len(self._token_ids)
        has_waited = stop - self._read_end > _MAX_WAITING
        if len(text) <= len(context):
            if has_waited and text == context:
                # It adds nothing behind others that added nothing: a special token, of no consequence to what follows.
                self._token_ids.pop()
            return ""
        if text.endswith(_REPLACEMENT) and not is_last:
            if not has_waited:
                return ""
            stop -= _MAX_CHARACTER_BYTES
            certain = self._decode(self._token_ids[self._context_start : stop])
            if len(certain) <= len(context) or not text.startswith(certain):
                # The cut goes through a character that is whole; it is past it a token later.
                return ""
            text = certain
        self._context_start, self._read_end = self._read_end, stop
        return text[len(context) :]

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        # Tidying up spaces would change text that has been given out already.
        return self._decoder.decode(
            token_ids, skip_special_tokens=self._skips_special_tokens, clean_up_tokenization_spaces=False
        )

    def _release(self, text: str, *, is_last: bool) -> str:
        if self.is_stopped:
            return ""
        text = self._held_back + text
        self._held_back = ""
        found = [(place, len(stop)) for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            place, length = min(found)
            self._stop_text = text[place : place + length]
            return text[: place + length if self._includes_stop else place]
        if not is_last:
            num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
            if num_held:
                self._held_back = text[-num_held:]
                text = text[:-num_held]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
