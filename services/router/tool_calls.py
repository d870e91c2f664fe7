"""Calls of tools in what a model writes.

Every family of models writes them in its own way. A scanner reads an answer as it streams, passes on what is text, and
holds back what may be the beginning of a call until it is clear. From a call's name on its arguments go out as they
come. What looks like a call and cannot be read is text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from services.router.call_object import CallName, CallNews
from services.router.call_region import CallRegion
from services.router.request import ToolCall


class ToolCallFormat(StrEnum):
    """How a base writes calls."""

    AUTO = "auto"
    """Whichever of the next three is met; bare JSON counts only if it names a tool of the request."""
    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5 and 3."""
    LLAMA = "llama"
    """The whole answer is `{"name": ..., "parameters": {...}}`, several apart by `;`: Llama 3."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS]` and a list of calls, or a name and its arguments: Mistral."""
    LIST = "list"
    """The whole answer is a list of calls, or holds none at all, because a grammar made it so."""
    ARGUMENTS = "arguments"
    """The whole answer is the arguments of one call, because a grammar made it so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """Words of an answer."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPiece:
    """A call in an answer begins."""

    call_idx: int
    """Its place among the answer's calls."""
    call_id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ArgumentsPiece:
    """More of a call's arguments."""

    call_idx: int
    text: str


Piece = TextPiece | CallPiece | ArgumentsPiece
"""What an answer is made of."""

_HERMES_BEGIN, _HERMES_END = "<tool_call>", "</tool_call>"
_MISTRAL_BEGIN = "[TOOL_CALLS]"
_LLAMA_BEGIN = "<|python_tag|>"
_BEGINNINGS = {
    ToolCallFormat.AUTO: (_HERMES_BEGIN, _MISTRAL_BEGIN, _LLAMA_BEGIN),
    ToolCallFormat.HERMES: (_HERMES_BEGIN,),
    ToolCallFormat.MISTRAL: (_MISTRAL_BEGIN,),
    ToolCallFormat.LLAMA: (_LLAMA_BEGIN,),
    ToolCallFormat.LIST: (),
    ToolCallFormat.ARGUMENTS: (),
}
_FIRST_KEY = re.compile(r'\s*\[?\s*\{\s*"([^"]*)"')
_KEYS_OF_CALLS = frozenset({"name", "arguments", "parameters", "type", "id"})


class ToolCallScanner:
    """Reads one answer, piece by piece.

    Args:
        format: how the base writes calls.
        names: the functions that may be called.
        forced_name: the function that `ARGUMENTS` belong to.
    """

    def __init__(
        self,
        format: ToolCallFormat,  # noqa: A002  (the word for it)
        *,
        names: frozenset[str],
        forced_name: str | None = None,
    ) -> None:
        self._format = format
        self._names = names
        self._forced_name = forced_name or ""
        self._num_calls = 0
        self._held = ""
        """What is not passed on yet."""
        self._has_begun = False
        """Whether anything but blanks came."""
        self._region: CallRegion | None = None

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that are clear once this text has come."""
        if self._format is ToolCallFormat.ARGUMENTS:
            yield from self._forced(text)
            return
        self._held += text
        if not self._has_begun and self._region is None:
            if self._may_be_bare():
                return
            self._has_begun = bool(self._held.strip())
            if self._format is ToolCallFormat.LIST and self._held.lstrip().startswith("["):
                self._region = CallRegion("", names=self._names)
        yield from self._scan()

    def end(self) -> Iterator[Piece]:
        """The pieces of what was still held, at the end of the answer."""
        if self._region is not None:
            self._region.end()
            yield from self._close(self._region)
        held, self._held = self._held, ""
        if not self._has_begun and (calls := self._bare_calls(held)):
            for value in calls:
                yield from self._whole(value)
        elif held and not (self._num_calls and not held.strip()):
            yield TextPiece(text=held)

    def _forced(self, text: str) -> Iterator[Piece]:
        """All of the answer is the arguments of the one call."""
        if not self._num_calls:
            text = text.lstrip()
            if not text:
                return
            yield self._begin(self._forced_name)
        yield ArgumentsPiece(call_idx=0, text=text)

    def _may_be_bare(self) -> bool:
        """Whether all that came may be the beginning of an answer that is nothing but calls. Only its end can tell."""
        text = self._held.lstrip()
        if self._format is ToolCallFormat.LIST:
            return not text
        if self._format not in {ToolCallFormat.AUTO, ToolCallFormat.LLAMA}:
            return False
        if not text:
            return True
        first_key = _FIRST_KEY.match(text)
        is_other = first_key is not None and first_key.group(1) not in _KEYS_OF_CALLS
        return text[0] in "{[" and not text.startswith(_MISTRAL_BEGIN) and not is_other

    def _bare_calls(self, held: str) -> list[dict[str, Any]]:
        if self._format not in {ToolCallFormat.AUTO, ToolCallFormat.LLAMA}:
            return []
        values = _json_values(held) or []
        return values if all(value["name"] in self._names for value in values) else []

    def _scan(self) -> Iterator[Piece]:
        while self._held:
            if self._region is not None:
                text, self._held = self._held, ""
                for news in self._region.feed(text):
                    yield self._piece(news)
                if not self._region.is_over:
                    return
                yield from self._close(self._region)
                continue
            place, mark = self._next_mark()
            if mark is None:
                kept = _possible_beginning(self._held, _BEGINNINGS[self._format])
                # Blanks go, too, if a call comes after them.
                clear = self._held[: len(self._held) - kept].rstrip()
                self._held = self._held[len(clear) :]
                if clear:
                    yield TextPiece(text=clear)
                return
            if before := self._held[:place].rstrip():
                yield TextPiece(text=before)
            self._held = self._held[place + len(mark) :]
            self._region = self._region_of(mark)

    def _region_of(self, mark: str) -> CallRegion:
        if mark == _HERMES_BEGIN:
            return CallRegion(mark, end_mark=_HERMES_END)
        if mark == _MISTRAL_BEGIN:
            return CallRegion(mark, takes_named=True)
        return CallRegion(mark, names=self._names)

    def _close(self, region: CallRegion) -> Iterator[Piece]:
        """Go on behind a region that is over."""
        self._region = None
        if region.text:
            yield TextPiece(text=region.text)
        self._held = region.rest + self._held

    def _next_mark(self) -> tuple[int, str | None]:
        found = [(self._held.find(mark), mark) for mark in _BEGINNINGS[self._format] if mark in self._held]
        return min(found) if found else (0, None)

    def _begin(self, name: str) -> CallPiece:
        self._num_calls += 1
        return CallPiece(call_idx=self._num_calls - 1, call_id=f"call_{uuid.uuid4().hex[:24]}", name=name)

    def _piece(self, news: CallNews) -> Piece:
        if isinstance(news, CallName):
            return self._begin(news.name)
        return ArgumentsPiece(call_idx=self._num_calls - 1, text=news.text)

    def _whole(self, value: dict[str, Any]) -> Iterator[Piece]:
        yield self._begin(value["name"])
        arguments = value.get("arguments", value.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        yield ArgumentsPiece(call_idx=self._num_calls - 1, text=text)


def joined(pieces: Iterable[Piece]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text of an answer and its calls, from all its pieces."""
    texts: list[str] = []
    begun: list[CallPiece] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        match piece:
            case TextPiece():
                texts.append(piece.text)
            case CallPiece():
                begun.append(piece)
                arguments.append([])
            case ArgumentsPiece():
                arguments[piece.call_idx].append(piece.text)
    calls = (
        ToolCall(call_id=call.call_id, name=call.name, arguments="".join(parts).strip() or "{}")
        for call, parts in zip(begun, arguments, strict=True)
    )
    return "".join(texts), tuple(calls)


def _possible_beginning(text: str, marks: tuple[str, ...]) -> int:
    """Characters at the end of a text that may become one of the marks."""
    longest = max((len(mark) for mark in marks), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


def _json_values(text: str) -> list[dict[str, Any]] | None:
    """The calls of a text that is nothing but JSON: an object, a list of them, or several apart by `;` or blanks."""
    decoder = json.JSONDecoder()
    found: list[Any] = []
    rest = text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        found.extend(cast("list[Any]", value) if isinstance(value, list) else [value])
        rest = rest[end:].lstrip(" \t\r\n;")
    if not all(
        isinstance(value, dict) and isinstance(cast("dict[str, Any]", value).get("name"), str) for value in found
    ):
        return None
    return found
