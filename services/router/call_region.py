"""The part of an answer behind a mark that announces calls: which calls it holds, and where it ends.

Between calls stand blanks, commas, semicolons and brackets. Anything else ends the region and is text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.router.call_object import ArgumentsText, CallName, CallNews, CallObject, JsonSpan

_BETWEEN = " \t\r\n,;[]"
_NAMED = re.compile(r"([A-Za-z0-9_.:-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
"""As newer Mistrals begin a call: a name, and its arguments behind it."""
_MAYBE_NAMED = re.compile(r"[A-Za-z0-9_.:-]+\s*(?:\[(?:A(?:R(?:G(?:S\]?)?)?)?)?)?\s*\Z")


class CallRegion:
    """Reads the text behind a mark.

    Args:
        mark: what announced the calls.
        end_mark: what ends them, besides anything that is no call; empty for nothing else.
        names: the functions that may be called; None lets the model call what it likes, as a client may want to see.
        takes_named: whether a call may be a name with its arguments behind it.
    """

    def __init__(
        self, mark: str, *, end_mark: str = "", names: frozenset[str] | None = None, takes_named: bool = False
    ) -> None:
        self.is_over = False
        self.text = ""
        """Once the region is over: what was taken for the beginning of calls, and is none."""
        self.rest = ""
        """Once the region is over: what comes behind it, and was not looked at."""
        self._end_mark = end_mark
        self._again_mark = mark if takes_named else ""
        """What announces a further call inside the region."""
        self._names = names
        self._takes_named = takes_named
        self._has_told = False
        self._untold = mark
        """What was read since the last call, and is text if no call comes of it."""
        self._held = ""
        self._object: CallObject | None = None
        self._arguments: JsonSpan | None = None

    def feed(self, text: str) -> Iterator[CallNews]:
        """What becomes known of the calls."""
        self._held += text
        while self._held and not self.is_over:
            if self._object is not None:
                yield from self._read_object(self._object)
            elif self._arguments is not None:
                yield from self._read_arguments(self._arguments)
            elif (begun := self._next_call()) is None:
                return
            else:
                yield from begun

    def end(self) -> None:
        """The answer is over."""
        is_cut_mark = self._has_told and self._end_mark.startswith(self._held)
        if not self.is_over:
            self._finish(text="" if is_cut_mark else self._held)

    def _next_call(self) -> list[CallNews] | None:
        """Begin the next call, or pass over what stands between calls; None where more text has to come first."""
        held = self._held
        if self._end_mark and held.startswith(self._end_mark):
            self._finish(text="" if self._has_told else self._end_mark, rest=held[len(self._end_mark) :])
        elif self._again_mark and held.startswith(self._again_mark):
            self._untold += self._again_mark
            self._held = held[len(self._again_mark) :]
        elif any(mark.startswith(held) for mark in (self._end_mark, self._again_mark)):
            return None
        elif held[0] in _BETWEEN:
            self._takes_named = self._takes_named and held[0] != "["
            self._untold += held[0]
            self._held = held[1:]
        elif held[0] == "{":
            self._object = CallObject()
        elif self._takes_named and (named := _NAMED.match(held)):
            self._held = held[named.end() :]
            self._arguments = JsonSpan()
            return [self._told(CallName(name=named.group(1)))]
        elif self._takes_named and _MAYBE_NAMED.match(held):
            return None
        else:
            self._finish(rest=held)
        return []

    def _told(self, name: CallName) -> CallName:
        self._has_told, self._untold = True, ""
        return name

    def _read_object(self, reader: CallObject) -> Iterator[CallNews]:
        for news in reader.feed(self._held):
            if isinstance(news, CallName):
                if self._names is not None and news.name not in self._names:
                    self._finish(text=self._held)
                    return
                self._told(news)
            yield news
        if not reader.has_begun:
            self._untold += self._held[: reader.num_read]
        self._held = self._held[reader.num_read :]
        if reader.is_done:
            self._object = None
        elif reader.is_broken:
            self._finish(rest=self._held)

    def _read_arguments(self, span: JsonSpan) -> Iterator[CallNews]:
        end = span.feed(self._held)
        yield ArgumentsText(text=self._held[:end])
        self._held = self._held[end:]
        if span.is_complete:
            self._arguments = None

    def _finish(self, *, text: str = "", rest: str = "") -> None:
        # Separators behind the last call are worth no text.
        is_separator = self._has_told and not self._untold.strip(_BETWEEN)
        self.is_over = True
        self.text, self.rest = ("" if is_separator else self._untold) + text, rest
        self._held = ""
