"""Reads JSON from strangers, so that it means one thing, takes memory in proportion, and can be written again.

Python's parser takes the last of two equal keys where others take the first, reads NaN, lets halves of characters
through that no encoder takes, and makes of 16 MB of `[],[],` objects of half a GB.
"""

from __future__ import annotations

import json
from typing import Any, cast

_MAX_DEPTH = 32
"""No file of an adapter nests deeper than a handful; printing what nests deeper may exhaust the stack."""
_ESCAPED_SURROGATE = "\\ud"


def parse_strictly(content: bytes, *, max_values: int, encoding: str = "utf-8") -> Any:
    """The value of a JSON document.

    Args:
        content: the whole document.
        max_values: limit on the values it may hold, counted before there is an object for each.
        encoding: of the text; `utf-8-sig` passes over the mark that editors on Windows put before it.

    Raises:
        ValueError: it is no JSON, has a key twice, a number that JSON has not, half a character, too many values, or
            nests too deep.
    """
    text = content.decode(encoding)
    # Each value but the first comes after one of these. Those inside strings count too: honest files have few.
    if sum(text.count(mark) for mark in ",[{") > max_values:
        raise ValueError(f"it holds more than {max_values} values")
    try:
        value: Any = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    _check_depth(value)
    if _ESCAPED_SURROGATE in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return
    raise ValueError("it nests too deep")


def _children(item: object) -> list[object]:
    if isinstance(item, dict):
        return list(cast("dict[str, object]", item).values())
    return cast("list[object]", item)
