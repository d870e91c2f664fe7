"""Calls of tools in what a model writes.

Every family of models writes them in its own way. A scanner reads an answer as it streams, passes on what is text, and
holds back what may be the beginning of a call until it is clear. What looks like a call and cannot be read is text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

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
    """The whole answer is a list of calls, because a grammar made it so."""
    ARGUMENTS = "arguments"
    """The whole answer is the arguments of one call, because a grammar made it so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """Words of an answer."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPiece:
    """A call in an answer."""

    call: ToolCall


Piece = TextPiece | CallPiece
"""What an answer is made of."""

_HERMES_BEGIN, _HERMES_END = "<tool_call>", "</tool_call>"
_MISTRAL_BEGIN = "[TOOL_CALLS]"
_LLAMA_BEGIN = "<|python_tag|>"
_WHOLE = frozenset({ToolCallFormat.LIST, ToolCallFormat.ARGUMENTS})
_BEGINNINGS = {
    ToolCallFormat.AUTO: (_HERMES_BEGIN, _MISTRAL_BEGIN, _LLAMA_BEGIN),
    ToolCallFormat.HERMES: (_HERMES_BEGIN,),
    ToolCallFormat.MISTRAL: (_MISTRAL_BEGIN,),
    ToolCallFormat.LLAMA: (_LLAMA_BEGIN,),
    ToolCallFormat.LIST: (),
    ToolCallFormat.ARGUMENTS: (),
}
_MISTRAL_CALL = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\[ARGS\])?\s*(?=\{)")


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
        self._forced_name = forced_name
        self._held = ""
        """What is not passed on yet."""
        self._has_begun = False
        """Whether anything but blanks came."""
        self._holds_all = format in _WHOLE

    def feed(self, text: str) -> Iterator[Piece]:
        """The pieces that are clear once this text has come."""
        self._held += text
        if self._holds_all or (not self._has_begun and self._may_be_bare()):
            return
        self._has_begun = self._has_begun or bool(self._held.strip())
        yield from self._scan()

    def end(self) -> Iterator[Piece]:
        """The pieces of what was still held, at the end of the answer."""
        held, self._held = self._held, ""
        if not held:
            return
        match self._format:
            case ToolCallFormat.ARGUMENTS:
                yield _call(self._forced_name or "", held.strip())
            case ToolCallFormat.LIST:
                yield from _calls_or_text(_json_values(held), held)
            case _ if held.lstrip().startswith(_MISTRAL_BEGIN):
                yield from _calls_or_text(_mistral_calls(held.lstrip().removeprefix(_MISTRAL_BEGIN)), held)
            case _ if held.lstrip().startswith(_HERMES_BEGIN):
                # A model that stopped before the closing tag often wrote all of the call.
                yield from _calls_or_text(_json_values(held.lstrip().removeprefix(_HERMES_BEGIN)), held)
            case _:
                yield from self._bare_calls(held)

    def _may_be_bare(self) -> bool:
        """Whether all that came may be the beginning of an answer that is nothing but calls."""
        if self._format not in {ToolCallFormat.AUTO, ToolCallFormat.LLAMA}:
            return False
        text = self._held.lstrip()
        return not text or (text[0] in "{[" and not text.startswith(_MISTRAL_BEGIN))

    def _bare_calls(self, held: str) -> Iterator[Piece]:
        is_marked = held.lstrip().startswith(_LLAMA_BEGIN)
        values = _json_values(held.lstrip().removeprefix(_LLAMA_BEGIN))
        if not values or not all(_name_of(value) in self._names for value in values):
            yield TextPiece(text=held)
        elif is_marked or not self._has_begun:
            yield from _calls_or_text(values, held)
        else:
            yield TextPiece(text=held)

    def _scan(self) -> Iterator[Piece]:
        while self._held:
            place, mark = self._next_mark()
            if mark is None:
                kept = _possible_beginning(self._held, _BEGINNINGS[self._format])
                # Blanks go, too, if a call comes after them.
                clear = self._held[: len(self._held) - kept].rstrip()
                self._held = self._held[len(clear) :]
                if clear:
                    yield TextPiece(text=clear)
                return
            if place:
                if before := self._held[:place].rstrip():
                    yield TextPiece(text=before)
                self._held = self._held[place:]
            if mark != _HERMES_BEGIN:
                # These run to the end of the answer.
                self._holds_all = True
                return
            end = self._held.find(_HERMES_END)
            if end < 0:
                return
            whole = self._held[: end + len(_HERMES_END)]
            self._held = self._held[len(whole) :].lstrip()
            yield from _calls_or_text(_json_values(whole[len(_HERMES_BEGIN) : end]), whole)

    def _next_mark(self) -> tuple[int, str | None]:
        found = [(self._held.find(mark), mark) for mark in _BEGINNINGS[self._format] if mark in self._held]
        return min(found) if found else (0, None)


def _possible_beginning(text: str, marks: tuple[str, ...]) -> int:
    """Characters at the end of a text that may become one of the marks."""
    longest = max((len(mark) for mark in marks), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


def _calls_or_text(values: list[dict[str, Any]] | None, original: str) -> Iterator[Piece]:
    if not values:
        yield TextPiece(text=original)
        return
    for value in values:
        arguments = value.get("arguments", value.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        yield _call(str(_name_of(value)), text)


def _call(name: str, arguments: str) -> CallPiece:
    return CallPiece(call=ToolCall(call_id=f"call_{uuid.uuid4().hex[:24]}", name=name, arguments=arguments or "{}"))


def _name_of(value: dict[str, Any]) -> str | None:
    name = value.get("name")
    return name if isinstance(name, str) and name else None


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
    if not all(isinstance(value, dict) and _name_of(cast("dict[str, Any]", value)) for value in found):
        return None
    return found


def _mistral_calls(text: str) -> list[dict[str, Any]] | None:
    """A list of calls; or, as newer models write, a name and its arguments, again and again."""
    if text.lstrip().startswith(("[", "{")):
        return _json_values(text)
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    rest = text.replace(_MISTRAL_BEGIN, " ")
    while rest.strip():
        head = _MISTRAL_CALL.match(rest)
        if head is None:
            return None
        try:
            arguments, end = decoder.raw_decode(rest[head.end() :])
        except (ValueError, RecursionError):
            return None
        found.append({"name": head.group(1), "arguments": arguments})
        rest = rest[head.end() + end :]
    return found
