"""One call of a tool as a JSON object that comes in pieces: its arguments go on before the object is complete.

The object is `{"name": ..., "arguments": {...}}`; Llama writes `parameters` for `arguments`. The arguments are passed
on as the model wrote them: whoever calls the function reads them, and what is no JSON must not look as if it were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

_ARGUMENTS = frozenset({"arguments", "parameters"})
_BLANKS = " \t\r\n"
_OUTSIDE_STRINGS = re.compile(r'["{}\[\]]')
_INSIDE_STRINGS = re.compile(r'["\\]')


@dataclass(frozen=True, kw_only=True, slots=True)
class CallName:
    """A call begins: which function."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ArgumentsText:
    """More of the call's arguments."""

    text: str


CallNews = CallName | ArgumentsText
"""What is known of a call as it comes: its name once, then its arguments."""


class JsonSpan:
    """Where a JSON value ends that comes in pieces. It looks at quotes and brackets and nothing else."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._is_string = False
        self._is_escaped = False
        self._is_scalar: bool | None = None
        """Whether it is a number or a word, which only the character after it ends; None before it begins."""

    def feed(self, text: str, start: int = 0) -> int:
        """Where the value ends in this piece: the index behind its last character; `len(text)` if it goes on."""
        place = start
        if self._is_scalar is None and place < len(text):
            self._is_scalar = text[place] not in '"{['
        if self._is_scalar:
            while place < len(text) and text[place] not in ",}]" + _BLANKS:
                place += 1
            self.is_complete = place < len(text)
            return place
        while place < len(text):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            found = (_INSIDE_STRINGS if self._is_string else _OUTSIDE_STRINGS).search(text, place)
            if found is None:
                return len(text)
            place = found.end()
            self._take(found.group())
            if self.is_complete:
                break
        return place

    def _take(self, sign: str) -> None:
        if sign == "\\":
            self._is_escaped = True
            return
        if sign == '"':
            self._is_string = not self._is_string
        else:
            self._depth += 1 if sign in "{[" else -1
        self.is_complete = not self._is_string and self._depth <= 0


class _Place(Enum):
    BEFORE = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    INSIDE_VALUE = auto()
    AFTER_VALUE = auto()
    DONE = auto()
    BROKEN = auto()


class CallObject:
    """Reads one object. What comes after it is not touched; what cannot be a call is `is_broken`.

    Once the name was told, a call it is: what breaks afterwards ends it.
    """

    def __init__(self) -> None:
        self.num_read = 0
        """Characters of the last piece that belong to the object."""
        self._place = _Place.BEFORE
        self._key = ""
        self._span = JsonSpan()
        self._value: list[str] = []
        self._streams: bool | None = None
        """Whether the value goes out as it comes; None before its first character."""
        self._name: str | None = None
        self._early_arguments: str | None = None
        """Arguments that came before the name."""
        self._has_arguments = False

    @property
    def is_done(self) -> bool:
        """Whether the object's last brace came."""
        return self._place is _Place.DONE

    @property
    def is_broken(self) -> bool:
        """Whether this is no call, or none any more."""
        return self._place is _Place.BROKEN

    @property
    def has_begun(self) -> bool:
        """Whether its name was told."""
        return self._name is not None

    def feed(self, text: str) -> Iterator[CallNews]:
        """What becomes known; `num_read` says afterwards how much of the text belongs to the object."""
        place = 0
        while place < len(text) and self._place not in {_Place.DONE, _Place.BROKEN}:
            if self._place is _Place.INSIDE_VALUE:
                end = self._span.feed(text, place)
                yield from self._more_of_value(text[place:end])
                place = end
            elif text[place] in _BLANKS:
                place += 1
            elif self._place is _Place.VALUE:
                self._begin_value()
            else:
                self._sign(text[place])
                # A key is a value of its own: its quote belongs to it.
                place += self._place not in {_Place.INSIDE_VALUE, _Place.BROKEN}
            if self._place is _Place.DONE and not self._has_arguments:
                yield ArgumentsText(text="{}")
        self.num_read = place

    def _sign(self, sign: str) -> None:
        """A character outside keys and values."""
        match self._place, sign:
            case (_Place.BEFORE, "{") | (_Place.AFTER_VALUE, ","):
                self._place = _Place.KEY
            case _Place.KEY, '"':
                self._key = ""
                self._begin_value()
            case _Place.COLON, ":":
                self._place = _Place.VALUE
            case ((_Place.KEY | _Place.AFTER_VALUE), "}"):
                self._place = _Place.BROKEN if self._name is None else _Place.DONE
            case _:
                self._place = _Place.BROKEN

    def _begin_value(self) -> None:
        self._place, self._span, self._value, self._streams = _Place.INSIDE_VALUE, JsonSpan(), [], None

    def _more_of_value(self, piece: str) -> Iterator[CallNews]:
        if self._streams is None:
            is_wanted = self._key in _ARGUMENTS and self._name is not None and not self._has_arguments
            # As a text, arguments are quoted once more: they can be read when they are complete.
            self._streams = is_wanted and piece[:1] != '"'
        if self._streams:
            self._has_arguments = True
            yield ArgumentsText(text=piece)
        else:
            self._value.append(piece)
        if not self._span.is_complete:
            return
        if self._key:
            self._place = _Place.AFTER_VALUE
            if not self._streams:
                yield from self._value_ended(self._key, "".join(self._value))
        else:
            key = _parsed("".join(self._value))
            self._key = key if isinstance(key, str) else ""
            self._place = _Place.COLON if self._key else _Place.BROKEN

    def _value_ended(self, key: str, text: str) -> Iterator[CallNews]:
        if key == "name" and self._name is None:
            name = _parsed(text)
            if not isinstance(name, str) or not name:
                self._place = _Place.BROKEN
                return
            self._name = name
            yield CallName(name=name)
            if self._early_arguments is not None:
                yield from self._whole_arguments(self._early_arguments)
        elif key in _ARGUMENTS and not self._has_arguments:
            if self._name is None:
                self._early_arguments = text
            else:
                yield from self._whole_arguments(text)

    def _whole_arguments(self, text: str) -> Iterator[CallNews]:
        value = _parsed(text)
        self._has_arguments = True
        yield ArgumentsText(text=value if isinstance(value, str) else text)


def _parsed(text: str) -> Any:
    """A JSON value; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
