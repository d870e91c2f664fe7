"""What a person writes to `hilora chat`: lines with history and completion, and messages of several lines."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

_FENCE = '"""'
_CONTINUED = "\\"


class ReadLine(Protocol):
    """Where lines come from."""

    def __call__(self, *, is_continuing: bool) -> str:
        """The next line, without its end; it may go on with what was begun. Raises EOFError at the end."""
        ...


def read_message(read_line: ReadLine) -> str:
    """The next message. A backslash at the end of a line goes on in the next one, and three quotes hold as many lines
    as stand between them.

    Raises:
        EOFError: there is none. What was begun and not ended is a message.
    """
    line = read_line(is_continuing=False)
    if line.lstrip().startswith(_FENCE):
        return _fenced(line.lstrip().removeprefix(_FENCE), read_line)
    lines: list[str] = []
    while line.endswith(_CONTINUED):
        lines.append(line.removesuffix(_CONTINUED))
        try:
            line = read_line(is_continuing=True)
        except EOFError:
            line = ""
    return "\n".join([*lines, line]).strip()


def _fenced(line: str, read_line: ReadLine) -> str:
    lines: list[str] = []
    while not line.rstrip().endswith(_FENCE):
        lines.append(line)
        try:
            line = read_line(is_continuing=True)
        except EOFError:
            return "\n".join(lines).strip()
    return "\n".join([*lines, line.rstrip().removesuffix(_FENCE)]).strip()


class Terminal:
    """Lines from a terminal, with the editing and the history of readline where Python has it.

    Args:
        completions: what Tab offers at the beginning of a line.
    """

    def __init__(self, completions: Sequence[str]) -> None:
        self._frame = ("", "")
        with contextlib.suppress(ImportError):
            # Loading it is what gives `input` its editing; it also keeps a pasted text of several lines together.
            import readline

            def complete(begun: str, state: int) -> str | None:
                found = [name for name in completions if name.startswith(begun)]
                return found[state] if state < len(found) else None

            readline.set_completer(complete)
            # What takes no room on the screen is marked, or long lines would be wrapped in the wrong place.
            self._frame = ("\001\033[1;36m\002", "\001\033[0m\002")
            # A slash does not end a word.
            readline.set_completer_delims(" ")
            readline.parse_and_bind("tab: complete")

    def __call__(self, *, is_continuing: bool) -> str:
        """See `ReadLine`."""
        colour, plain = self._frame
        return input(f"{colour}{'…' if is_continuing else '›'}{plain} ")
