"""How a benchmark's child processes speak with it: one JSON object a line, commands in, answers out, in turns."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


def say(fields: Mapping[str, Any]) -> None:
    """Write one line to standard output."""
    print(json.dumps(fields), flush=True)  # noqa: T201  (the protocol)


async def answer_commands(obey: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
    """Answer each line of standard input with a line, until standard input ends, as it does when the parent does."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        say(await obey(json.loads(line)))
