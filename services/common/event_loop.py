"""The event loop of a service: uvloop where it is installed, asyncio's own elsewhere (docs/adr/0033)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` on the fastest loop that is there.

    Args:
        main: what to run.

    Returns:
        What it returned. Raises what it raised.
    """
    factory = import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
