"""Grammars, compiled by llguidance: what an answer must look like, as the set of tokens that may come next.

Shapes: V vocabulary.

llguidance is imported when the first grammar comes.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hilora.errors import GenerationFailed, InvalidInput
from services.worker.engine.sampling.sampling_params import Grammar, GrammarKind

_NUM_KEPT = 64
"""Compiled grammars that are kept: applications send the same few again and again."""
_MAX_REASON_LENGTH = 300
"""Characters of the library's explanation that are passed on."""
_JSON_WHITESPACE = "[ \\n\\r\\t]{0,32}"
"""Between the parts of a JSON text: room to indent, but not to write spaces until the answer's length is used up."""
_SOURCE_LINE = re.compile(r"\s*(\d+ \||\^)")
"""Lines of the library's explanations that show its own language, not what the caller sent."""


class Vocabulary(Protocol):
    """What a compiler needs to know about tokens."""

    @property
    def strips_first_space(self) -> bool:
        """Whether an answer loses the space that its first token brings along."""
        ...

    def text_bytes(self) -> Any:
        """What each token adds to an answer, by id; empty for tokens without text."""
        ...

    def encode_exactly(self, text: str) -> list[int] | None:
        """The tokenizer's own tokens of a text, if their bytes together are the text."""
        ...


class GrammarCompiler:
    """Compiles grammars for one vocabulary. May be called from any thread; a call may take seconds.

    The library bounds what a grammar may cost, at compilation and at each token.

    Args:
        vocabulary: the model's.
        eos_token_ids: its end-of-sequence tokens.
    """

    def __init__(self, vocabulary: Vocabulary, *, eos_token_ids: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._eos_token_ids = sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()

    def compile(self, grammar: Grammar) -> TokenMatcher:
        """A matcher at the beginning of an answer, for one request alone.

        Raises:
            InvalidInput: `invalid_grammar`, with the reason; `grammar_not_installed`.
        """
        with self._lock:
            if grammar not in self._compiled:
                self._compiled[grammar] = self._compile(grammar)
                if len(self._compiled) > _NUM_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return TokenMatcher(self._compiled[grammar].deep_copy(), num_tokens=len(self._vocabulary.text_bytes()))

    def _compile(self, grammar: Grammar) -> Any:
        library = _library()
        if self._tokenizer is None:
            self._tokenizer = self._wrap_tokenizer(library)
        try:
            source = self._source(library, grammar)
        except ValueError as error:
            raise _invalid_grammar(grammar, str(error)) from error
        except RecursionError as error:
            raise _invalid_grammar(grammar, "it is nested too deeply.") from error
        limits = library.LLParserLimits(verbose_errors=False)
        matcher = library.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise _invalid_grammar(grammar, matcher.get_error())
        return matcher

    def _source(self, library: Any, grammar: Grammar) -> str:
        """The grammar in the library's language, with the space in front that the decoded answer will lose."""
        match grammar.kind:
            case GrammarKind.CHOICE:
                root = " | ".join(map(_literal, grammar.choices))
            case GrammarKind.REGEX:
                root = f"/{library.regex_to_lark(grammar.text, '')}/"
            case GrammarKind.JSON_OBJECT:
                root = _json_rule({"type": "object"})
            case GrammarKind.JSON_SCHEMA:
                # Parsed and written again, so that nothing in it can end the rule.
                root = _json_rule(json.loads(grammar.text))
        space = '" " ' if self._vocabulary.strips_first_space else ""
        return f"start: {space}root\nroot: {root}\n"

    def _wrap_tokenizer(self, library: Any) -> Any:
        tokens = _Tokens(self._vocabulary, self._eos_token_ids)
        wrapper = library.TokenizerWrapper(tokens)
        return library.LLTokenizer(wrapper, n_vocab=len(tokens.tokens), eos_token=tokens.eos_token_id)


class TokenMatcher:
    """How far one answer has come in a grammar; see `GrammarMatcher`.

    Args:
        matcher: llguidance's, for this answer alone.
        num_tokens: size of the vocabulary.
    """

    def __init__(self, matcher: Any, *, num_tokens: int) -> None:
        self._matcher = matcher
        self._num_tokens = num_tokens

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        """Whether the answer must end here."""
        return bool(self._matcher.is_stopped()) and self.is_accepting and not self._matcher.is_error()

    def allowed_tokens(self) -> NDArray[np.bool_]:
        """Which tokens may come next, `[V]`, end-of-sequence tokens included where the answer may end.

        Raises:
            GenerationFailed: `grammar_failed`, the grammar is too complex to follow; `grammar_dead_end`, no token can
                go on.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.unpackbits(packed, count=self._num_tokens, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """The answer has this token.

        Raises:
            GenerationFailed: `grammar_failed`.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _broken(self._matcher.get_error())


class _Tokens:
    """A vocabulary as llguidance's wrapper wants to see it.

    Behind the model's tokens stand one more for each byte. The library cuts text that a grammar forces into tokens and
    loses what no token covers, a lone space in a vocabulary of whole words for example. The model never sees them.
    """

    def __init__(self, vocabulary: Vocabulary, eos_token_ids: list[int]) -> None:
        words = list(vocabulary.text_bytes())
        for token_id in eos_token_ids:
            words[token_id] = b""
        self.tokens = [*words, *(bytes([byte]) for byte in range(256))]
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else 0
        self.bos_token_id = None
        self.special_token_ids = eos_token_ids
        self._vocabulary = vocabulary
        # Backwards, so that of equal tokens the first one counts: the model's own before those for bytes.
        self._id_of = {token: token_id for token_id, token in reversed([*enumerate(self.tokens)]) if token}
        self._max_length = max(map(len, self.tokens))

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text that the grammar forces: the tokenizer's own, else always the longest that fits."""
        exact = self._vocabulary.encode_exactly(text)
        if exact is not None:
            return exact
        wanted = text.encode()
        token_ids: list[int] = []
        place = 0
        while place < len(wanted):
            pieces = (wanted[place : place + length] for length in range(self._max_length, 0, -1))
            token = next(piece for piece in pieces if piece in self._id_of)
            token_ids.append(self._id_of[token])
            place += len(token)
        return token_ids


def _literal(text: str) -> str:
    """A text in the library's language, which has one unprintable character fewer than JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _json_rule(schema: Any) -> str:
    if isinstance(schema, dict):
        schema = {"x-guidance": {"whitespace_pattern": _JSON_WHITESPACE}, **schema}
    return f"%json {json.dumps(schema)}"


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InvalidInput(
            "This worker was installed without its grammar library.",
            code="grammar_not_installed",
            remedy="Install the worker extra, or send the request without a grammar.",
            place="grammar",
        ) from error
    return llguidance


def _broken(reason: str) -> GenerationFailed:
    if reason.startswith("NoExtension"):
        return GenerationFailed(
            "The grammar asks for text that the model's tokens cannot write.",
            code="grammar_dead_end",
            remedy="Use a grammar whose texts the base model's tokenizer knows.",
            place="grammar",
        )
    return GenerationFailed(
        f"The grammar could not be followed: {_shortened(reason)}",
        code="grammar_failed",
        remedy="Simplify the schema or the expression.",
        place="grammar",
    )


def _invalid_grammar(grammar: Grammar, reason: str) -> InvalidInput:
    return InvalidInput(
        f"The {grammar.kind} cannot be used: {_shortened(reason)}",
        code="invalid_grammar",
        remedy="Correct it; look-around, back references, remote references and unbounded sizes are not supported.",
        place="grammar",
    )


def _shortened(reason: str) -> str:
    """The library's explanation in one line."""
    lines = (line for line in reason.splitlines() if not _SOURCE_LINE.match(line))
    words = " ".join(" ".join(lines).split())
    return words if len(words) <= _MAX_REASON_LENGTH else f"{words[:_MAX_REASON_LENGTH]}…"
